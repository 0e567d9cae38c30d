"""`torchrun` over two nodes, which are two network namespaces of this machine, with a link as slow as you like.

The two commands that it prints are those to type on two machines, with the first one's address. It needs root on Linux,
with iproute2. Over 10 Mbit/s a step of the compressed plan takes a third of the time of the plain one.

$ python examples/two_nodes.py --mbit 10 examples/nanogpt.py --plan plain --steps 20
20 steps on 2 rank(s), plan plain: 4.719 bits per byte
0.825 s and 547888 bytes a step, for a gradient of 547840 bytes

$ python examples/two_nodes.py --mbit 10 examples/nanogpt.py --plan compressed
100 steps on 2 rank(s), plan compressed: 3.808 bits per byte
0.247 s and 26702 bytes a step, for a gradient of 547840 bytes
"""

import argparse
import os
import shlex
import subprocess
import sys

from tightgrad_lab.network import network

arguments = argparse.ArgumentParser()
arguments.add_argument("--mbit", type=float, help="rate of each link in Mbit/s; not limited if left out")
arguments.add_argument("script", nargs=argparse.REMAINDER, help="script to run on both nodes, and its arguments")
options = arguments.parse_args()

environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
with network(2, options.mbit and round(options.mbit * 1e6)) as net:  # removed at the end
    nodes = []
    for node, namespace in enumerate(net.namespaces):
        command = ["torchrun", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node", "1"]
        command += ["--master-addr", net.addresses[0], "--master-port", "29500", *options.script]
        print(f"node {node}$ {shlex.join(command)}", flush=True)
        inside = ["ip", "netns", "exec", namespace, sys.executable, "-m", "torch.distributed.run", *command[1:]]
        nodes.append(subprocess.Popen(inside, env=environment))
    try:
        codes = [node.wait() for node in nodes]
    finally:
        for node in nodes:
            node.terminate()
            node.wait()
sys.exit(max(codes))
