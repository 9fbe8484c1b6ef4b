"""With ENV=none: which packages differ from the pins; stop if one that runs need is missing."""

import sys
from importlib import metadata
from pathlib import Path

NEEDED = {
    "torch",
    "transformers",
    "peft",
    "numpy",
    "scipy",
    "scikit-learn",
    "safetensors",
    "tokenizers",
    "pyyaml",
}

if sys.version_info < (3, 11):  # noqa: UP036  (this file is what tells an older Python so)
    sys.exit(
        f"error: Python {sys.version.split()[0]}; this project needs 3.11 or newer: give PYTHON=..."
    )
differ, missing = [], []
for line in Path("requirements.txt").read_text(encoding="utf-8").splitlines():
    if "==" in line and not line.startswith("#"):
        name, pin = line.split("==")
        try:
            have = metadata.version(name)
            if have.split("+")[0] != pin:
                differ.append(f"{name} {have} (pin {pin})")
        except metadata.PackageNotFoundError:
            missing.append(name)
if fatal := [m for m in missing if m.lower() in NEEDED]:
    sys.exit(f"error: missing packages: {', '.join(fatal)}; install them or leave ENV=none out")
printed = Path(".cache/packages-told")
text = f"differs from requirements.txt: {', '.join(differ) or 'nothing'}"
text += f"; not installed: {', '.join(missing) or 'nothing'}"
if not printed.exists() or printed.read_text(encoding="utf-8") != text:
    print(f"ENV=none: {text}")
    printed.parent.mkdir(exist_ok=True)
    printed.write_text(text, encoding="utf-8")
