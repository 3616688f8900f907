# latent-cot in a container: docs/installing.md says how to use it.
#
#   docker build -t latent-cot .                                 for a CPU
#   docker build --build-arg TORCH=cu128 -t latent-cot:gpu .     for NVIDIA GPUs
FROM python:3.12-slim

# Which build of torch: cpu, cu126, cu128, ..., as https://pytorch.org/get-started/locally names them.
ARG TORCH=cpu
RUN pip install --no-cache-dir torch --index-url "https://download.pytorch.org/whl/${TORCH}"

WORKDIR /source
COPY . .
RUN pip install --no-cache-dir .

# Runs are written to /work, models are cached in /cache: mount both to keep them.
WORKDIR /work
ENV HF_HOME=/cache/huggingface XDG_CACHE_HOME=/cache
VOLUME ["/work", "/cache"]
ENTRYPOINT ["latent-cot"]
CMD ["--help"]
