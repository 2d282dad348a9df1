"""The tests of an adapter run where its package is installed: here if it is cheap, else by tools/test --integrations."""

import importlib.util

#: folder -> the package that its tests are about
PACKAGES = {
    "captum": "captum",
    "data": "pyarrow",
    "inseq": "inseq",
    "model_explorer": "model_explorer",
    "netron": "netron",
    "nnsight": "nnsight",
    "quantus": "quantus",
    "ray": "ray",
    "sae_lens": "sae_lens",
    "shap": "shap",
    "sklearn": "sklearn",
    "skorch": "skorch",
    "timm": "timm",
    "transformer_lens": "transformer_lens",
    "transformer_lens_4": "transformer_lens",
    "transformers": "transformers",
    "umap": "umap",
    "zennit": "zennit",
    "zennit_crp": "crp",
}


def installed(package):
    """Whether a package is there: not just a folder of tests of its name."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


collect_ignore = [folder for folder, package in PACKAGES.items() if not installed(package)]
collect_ignore += [] if installed("circuit_tracer") else ["circuits/test_circuit_tracer.py"]
collect_ignore += [] if installed("datasets") else ["data/test_datasets.py"]
