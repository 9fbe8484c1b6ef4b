"""Token-specific watermarking (Huo et al., ICML 2024): begin with README.md."""
