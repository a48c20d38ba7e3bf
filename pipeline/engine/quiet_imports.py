"""Imported before transformers: it looks into torchao, which reports each kernel that this machine has no use for."""

import logging

for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
