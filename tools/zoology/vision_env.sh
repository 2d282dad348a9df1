#!/usr/bin/env bash
# Makes a virtual environment with torchvision, timm, x-transformers, vit-pytorch and this project, for the zoo's suites.
#   tools/zoology/vision_env.sh FOLDER        (a second run finds the environment complete and does nothing)
# PyPI has torch for Linux only as a CUDA build. Its libtorch_cuda.so is linked by libtorch_python.so, so `import torch`
# needs the CUDA libraries that libtorch_cuda.so names, GPU or not. Left out are those that it does not name: Triton,
# cuda-bindings, cuSOLVER and NVTX. Everything that depends on torch is installed with --no-deps: pip would otherwise
# complete torch's own list, and with it the packages left out.
set -euo pipefail

folder=${1:?usage: vision_env.sh FOLDER}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
python=$folder/bin/python
stamp=$folder/.vision_env_done

# The stamp holds this script's checksum and the repository's place: a changed list or another clone installs again.
want="$(cksum <"${BASH_SOURCE[0]}") $repo"
if [[ -x $python && -f $stamp && $(cat "$stamp") == "$want" ]]; then
  echo "$folder is complete"
  exit 0
fi

[[ -x $python ]] || python3.11 -m venv "$folder"
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }

# What libtorch_cuda.so and libtorch_cpu.so name (readelf -d), in the versions that torch 2.14.1 pins.
pip install \
  'cuda-toolkit[cublas,cudart,cufft,cufile,cupti,curand,cusparse,nvjitlink,nvrtc]==13.0.3' \
  nvidia-cudnn-cu13==9.24.0.43 nvidia-cusparselt-cu13==0.8.1 nvidia-nccl-cu13==2.30.7 nvidia-nvshmem-cu13==3.4.5
# The dependencies in pure Python or without torch: torch's, torchvision's, timm's, x-transformers', this project's.
pip install \
  filelock 'typing-extensions>=4.10' 'setuptools>=77' 'sympy>=1.13.3' networkx jinja2 fsspec \
  numpy pillow pyyaml huggingface_hub safetensors 'einops>=0.8.2' 'einx>=0.3' loguru packaging rich typer
pip install --no-deps torch==2.14.1 torchvision==0.29.1 timm==1.0.31 \
  x-transformers==2.31.10 torch-einops-utils vit-pytorch==1.26.11
pip install --no-deps --editable "$repo"

"$python" -c 'import torch, torchvision, timm, x_transformers, vit_pytorch, lrp_fx; print("torch", torch.__version__)'
echo "$want" >"$stamp"
