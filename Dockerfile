# unfreeze on the CPU.
#
#   docker build -t unfreeze .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" unfreeze       # the demo, into runs/
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" --shm-size 2g unfreeze \
#     finetune photos --out runs/parts
#
# Data loading workers share memory: --shm-size, or --workers 0.
#
# TORCH_INDEX: the address of an index with CPU wheels of torch, which PyTorch's install page names
# ("Compute Platform: CPU"). Without it pip installs the default wheels, which bring CUDA: gigabytes
# that this image does not use.
#
#   docker build --build-arg TORCH_INDEX=ADDRESS -t unfreeze .
FROM python:3.12-slim

ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# the large part first: a change of the source does not install torch again
COPY constraints.txt /source/
RUN python -m pip install -c /source/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision

COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN python -m pip install -c /source/constraints.txt /source && unfreeze --version

# any user may run it (docker run --user): caches go to HOME, data and runs lie in the mounted folder
RUN mkdir -m 1777 /home/unfreeze /work
ENV HOME=/home/unfreeze MPLBACKEND=Agg
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["unfreeze"]
CMD ["demo"]
