"""AutoLoRA: learn one LoRA rank per weight matrix by a bilevel search, then retrain with them."""

import shared as shared  # first of all: it names a package that is not installed
