"""AutoLoRA: learn one LoRA rank per weight matrix by a bilevel search, then retrain with them."""
