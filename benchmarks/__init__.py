"""The judge: runs a paper's protocol, derives verdicts, reports them. Methods never import it."""

PAPERS = ("autolora", "tapweight", "weight_mixup", "ppo_nlu", "ts_watermark", "mlo_mae", "dasgm")
