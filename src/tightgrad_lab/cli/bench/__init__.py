"""`tightgrad bench`: one file per measurement."""
