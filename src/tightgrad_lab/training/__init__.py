"""How a case study is trained: the case's interface, ranks, sharding, the loop, and what is measured on the way."""
