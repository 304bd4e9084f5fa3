"""Train a model: `python train.py --config multi30k_en_de --model.dropout 0.3`.

The same as `transformer-jax train`; `--help` lists every setting.
"""

import sys

from transformer_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
