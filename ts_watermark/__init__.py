"""Token-specific watermarking (Huo et al., ICML 2024): begin with README.md."""

import shared as shared  # first of all: it names a package that is not installed
