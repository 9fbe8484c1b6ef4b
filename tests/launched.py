"""A method's tiny run as tests start it on several processes: without dropout, whose masks depend
on how a batch is divided.

Usage: accelerate launch --config_file configs/ddp.yaml tests/launched.py PAPER [options]
"""

import runpy
import sys
from pathlib import Path

import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
attention = F.scaled_dot_product_attention


def without_dropout(*words, dropout_p=0.0, **more):
    return attention(*words, **more)


F.dropout = lambda x, *words, **more: x
F.scaled_dot_product_attention = without_dropout
paper = sys.argv.pop(1)
runpy.run_module(f"{paper}.train", run_name="__main__", alter_sys=True)
