"""Token-specific watermarking (Huo et al., ICML 2024): train, embed, detect, attack, compare. Start with README.md."""
