# For those who have buildx: `make image-context`, then `docker buildx bake --file docker/docker-bake.hcl`. `make image` needs
# no buildx, pins the base and writes the SBOM. A test holds the values to requirements/stacks.toml.
variable "MACHINE" { default = "x86_64" } # or aarch64
variable "CHIP" { default = "910b" }      # or a3

group "default" { targets = ["vitdet"] }

target "image" {
  dockerfile = "../../../../docker/Dockerfile" # from the context
  platforms  = [MACHINE == "aarch64" ? "linux/arm64" : "linux/amd64"]
}

target "vitdet" {
  inherits = ["image"]
  context  = "build/image/vitdet-${MACHINE}/context"
  tags     = ["ascendet/vitdet:latest"]
  args = {
    BASE_IMAGE = "quay.io/ascend/cann:8.5.0-${CHIP}-ubuntu22.04-py3.11"
    PYTHON     = "3.11"
    IMPORTS    = "torch,torch_npu,mmcv._ext torch_npu,torch,mmcv._ext"
    FAMILY     = "vitdet"
  }
}

target "blendmask" {
  inherits = ["image"]
  context  = "build/image/blendmask-${MACHINE}/context"
  tags     = ["ascendet/blendmask:latest"]
  args = {
    BASE_IMAGE = "quay.io/ascend/cann:8.5.1-${CHIP}-ubuntu22.04-py3.11"
    PYTHON     = "3.11"
    IMPORTS    = "torch,torch_npu torch_npu,torch"
    FAMILY     = "blendmask"
  }
}
