# Thin and strict: every recipe is one command, the logic is in scripts/ascendet (typed, tested). `make help` lists all.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

# What to build and run. Override on the command line: make train MODEL=vitdet-b DATASET=coco DEVICES=0,1,2,3
STACK ?= vitdet
MODEL ?= vitdet-tiny
DATASET ?= shapes
DEVICES ?= 0,1
# auto: the real NPUs where a CANN tree and /dev/davinci* exist, else the simulated ones of cann_sim. Or: real, sim.
NPU ?= auto
# RESUME=1 continues the latest unfinished training of MODEL on DATASET.
RESUME ?=
# make train: AMP=1 trains in mixed precision, LR=5e-5 at that learning rate instead of the recipe's.
AMP ?=
LR ?=
# The run folder's name; where empty, the time it was started at, and for make curves and make report the latest.
RUN ?=
# The checkpoint to evaluate, where empty the latest training's last one; or, for make train, to start from.
CHECKPOINT ?=
# make eval, make speed: how many images, from the first on. make infer: files, folders, globs.
IMAGES ?=
# make infer: the lowest score that is drawn and listed; what damaged pictures do, skip or refuse.
SCORE ?= 0.3
BAD ?= skip
# make export, make om, make infer-om: sizes of the input, where empty the configuration's, and pictures of one pass; atc's
# precision mode; FORCE=1 takes SOC although npu-smi or set_env.sh name another.
SIZES ?=
BATCH ?=
PRECISION ?= origin
FORCE ?=
# make export: AIPP=1 takes pictures as bytes, which the device normalises.
AIPP ?=
# make om, make infer-om, make om-compare: what make om-precision wrote, operators that stay float32.
KEEP_DTYPE ?=
# make om-bisect: where to search, and nodes per conversion. make om-precision: the largest loss of AP.
STAGE ?=
CHUNK ?=
BOUND ?= 0.002
# make report: its language, en or zh; where empty, the locale's.
REPORT_LANG ?=
# Where wheels' sources are looked for first: a folder of archives and bare git repositories.
SOURCE_MIRROR ?=
# The wheel file to audit; JSON=1 prints the report for machines.
WHEEL ?=
JSON ?=
# The architecture to build mmcv or the image for, where it is not this machine's: aarch64 or x86_64.
ARCH ?=
# Where programs run: venv (the stack's environment), docker (its image). IMAGE: a ready one, which is not built;
# a bundle takes it along.
RUN_IN ?= venv
IMAGE ?=
# The image's base, where it is not the stack's CANN image for SOC (empty: the stack's first), such as Ascend910_9391.
BASE_IMAGE ?=
SOC ?=
# make k8s: machines, their gid of HwHiAiUser, and whether pods use their network.
NNODES ?= 2
DEVICE_GROUP ?= 1000
HOST_NETWORK ?=
# make test, make test-<suite>: only these files, folders or test ids, such as tests/sim/test_runs.py.
TESTS ?=
PYTHON ?= $(shell command -v python3.11 || command -v python3)

# What to try first when fetching: cn for mirrors in China, or the address of a folder with such files.
MIRROR ?=
# ACCEPT_NEW=1 takes files whose digest nobody has published, and records it.
ACCEPT_NEW ?=
# make data: take in a data set of your own from this folder or zip; the part that becomes the validation split where it has
# none, and what decides which pictures these are.
FROM ?=
VAL ?=
SEED ?= 0
# make train: passes over the data set, where not the recipe's.
EPOCHS ?=
# KEEP=0 removes archives once they are unpacked; KEEP=1 fetches them even so, for a bundle.
KEEP ?=
# make release: the private key to sign with; make check-release: its public half. A PEM file, Ed25519.
KEY ?=
# The bundle to take in.
FILE ?=

# A variable as one word of the shell, whatever is in it: paths of users have blanks and apostrophes.
quoted = '$(subst ','\'',$($1))'

export NPU SOURCE_MIRROR KEY
OUR_WHEELS := $(patsubst wheels/%/wheel.toml,%-wheel,$(wildcard wheels/*/wheel.toml))
PY := PYTHONPATH=scripts '$(PYTHON)' -m ascendet
FETCH = --mirror $(call quoted,MIRROR) $(if $(ACCEPT_NEW),--accept-new) $(if $(JSON),--json)
IN_IMAGE = --stack '$(STACK)' --soc '$(SOC)' --arch '$(ARCH)' --base-image '$(BASE_IMAGE)' --image '$(IMAGE)'
TARGET = $(IN_IMAGE) --run-in '$(RUN_IN)' --model $(call quoted,MODEL) --devices '$(DEVICES)' \
	--dataset $(call quoted,DATASET) $(if $(filter file,$(origin DATASET)),--dataset-by-default)
OF_SIZES = --sizes $(call quoted,SIZES) --batch $(call quoted,BATCH)
# Everything, but for what the command line or the environment names.
RELEASED = --stack '$(if $(filter command environment,$(origin STACK)),$(STACK))' --machine '$(ARCH)'
CONVERTED = --precision $(call quoted,PRECISION) --keep-dtype $(call quoted,KEEP_DTYPE) $(if $(FORCE),--force)
PROVEN = $(CONVERTED) --images $(call quoted,IMAGES) $(if $(JSON),--json)

##@ Start here
.PHONY: help doctor demo test
help: ## This list
	@awk -f scripts/help.awk $(firstword $(MAKEFILE_LIST))
demo: ## Everything from nothing, in acts: ViTDet and BlendMask trained on 2 devices, pictures, numbers, OM, reports; STACK=vitdet for one
	@$(PY) demo $(if $(filter command environment,$(origin STACK)),--stack '$(STACK)')
test: ## Linters and all test suites, or TESTS=…; ends with the slowest tests, each suite's time, the counts
	@$(PY) test --stack '$(STACK)' --tests $(call quoted,TESTS)
doctor: ## Check this machine; every problem is listed with its fix
	@$(PY) doctor --stack '$(STACK)'

##@ Pins
.PHONY: relock check-lock
relock: ## Write requirements/lock from stacks.toml and the *.in files
	@$(PY) lock
check-lock: ## Check that requirements/lock agrees with them
	@$(PY) lock --check

##@ Environment and wheels
.PHONY: env cann-sim sim-coverage patches audit $(OUR_WHEELS) check-repro check-aarch64 install
env: ## Make or repair the stack's virtual environment
	@$(PY) env --stack '$(STACK)'
cann-sim: ## Build the simulated CANN into it and show its devices
	@$(PY) cann-sim --stack '$(STACK)'
sim-coverage: ## Compare torch's operator database on it with the CPU, write the table (minutes); JSON=1 for machines
	@$(PY) sim-coverage --stack '$(STACK)' $(if $(JSON),--json)
patches: ## Check the patches' headers and write their index
	@$(PY) patches
$(OUR_WHEELS): %-wheel: ## Build, audit, install, smoke-test mmcv-wheel, mmdet-wheel and the like (docs/commands.md); ARCH=aarch64 cross-builds
	@$(PY) wheel '$*' --stack '$(STACK)' $(if $(ARCH),--machine '$(ARCH)')
audit: ## Audit any WHEEL against wheels/policy.toml and the stack; JSON=1 for machines
	@$(PY) audit $(call quoted,WHEEL) --stack '$(STACK)' $(if $(ARCH),--machine '$(ARCH)') $(if $(JSON),--json)
check-repro: ## Build mmcv twice from nothing, under two users, and compare every byte (minutes)
	@$(PY) check-repro mmcv --stack '$(STACK)'
check-aarch64: ## Build mmcv and the simulated CANN for aarch64 and smoke-test them under emulation (minutes)
	@$(PY) check-emulated --stack '$(STACK)' --machine aarch64
install: ## Build all of the stack's wheels and install them
	@$(PY) install --stack '$(STACK)'

##@ Container
.PHONY: image base-sim image-context plan-run shell k8s
image: ## Build the stack's image on its CANN image (or BASE_IMAGE, SOC, ARCH); size, digest, SBOM
	@$(PY) image $(IN_IMAGE)
base-sim: ## Make a stand-in for the CANN image with cann_sim; prints its name, for BASE_IMAGE
	@$(PY) base-sim $(IN_IMAGE)
image-context: ## Only the image's build context, for docker buildx bake and docker compose
	@$(PY) image $(IN_IMAGE) --context
plan-run: ## Print the docker command that make train RUN_IN=docker runs
	@$(PY) container plan $(TARGET)
k8s: ## Kubernetes jobs for NNODES machines with DEVICES each, as AscendJob and for Volcano; HOST_NETWORK=1
	@$(PY) k8s $(TARGET) --nnodes '$(NNODES)' --device-group '$(DEVICE_GROUP)' $(if $(HOST_NETWORK),--host-network)
shell: ## A shell on DEVICES, in the environment or (RUN_IN=docker) in the image
	@$(PY) container shell $(TARGET)

##@ Data, training, evaluation
.PHONY: data weights data-check bundle unbundle train eval infer speed curves
data: ## Make or fetch DATASET of requirements/datasets.toml, or take in your own: DATASET=mydata FROM=folder VAL=0.1
	@$(PY) data --stack '$(STACK)' --dataset $(call quoted,DATASET) --keep '$(KEEP)' --from $(call quoted,FROM) --val '$(VAL)' --seed '$(SEED)' $(FETCH)
weights: ## Fetch the checkpoints that STACK's models start from
	@$(PY) weights --stack '$(STACK)' $(FETCH)
data-check: ## Verify all data and weights that are here, byte by byte; with DATASET=…, what its annotations say; JSON=1
	@$(PY) data --check $(if $(filter command environment,$(origin DATASET)),--dataset $(call quoted,DATASET)) $(if $(JSON),--json)
bundle: ## Pack all that STACK and DATASET need for a site without a network, with IMAGE if given
	@$(PY) bundle --stack '$(STACK)' --dataset $(call quoted,DATASET) --image '$(IMAGE)'
unbundle: ## There: take in FILE=bundle
	@$(PY) bundle --unpack $(call quoted,FILE)
train: ## Train MODEL on DATASET on DEVICES; RESUME=1 continues, CHECKPOINT starts from a file; EPOCHS, LR, AMP=1
	@$(PY) train $(TARGET) --run '$(RUN)' --checkpoint $(call quoted,CHECKPOINT) --epochs '$(EPOCHS)' --lr '$(LR)' $(if $(AMP),--amp) $(if $(RESUME),--resume)
eval: ## COCO numbers of the latest training, or of CHECKPOINT; IMAGES=200 for a part
	@$(PY) evaluate $(TARGET) --checkpoint $(call quoted,CHECKPOINT) --images $(call quoted,IMAGES)
infer: ## Detect and draw objects in IMAGES='a.jpg folder *.png' on the first of DEVICES; JSON, latency
	@$(PY) infer $(TARGET) --checkpoint $(call quoted,CHECKPOINT) --images $(call quoted,IMAGES) --score '$(SCORE)' --bad '$(BAD)'
speed: ## First call, steady state at 640x427, IMAGES=200 pictures, memory, on the first of DEVICES; JSON=1 for machines
	@$(PY) speed $(TARGET) --checkpoint $(call quoted,CHECKPOINT) --images $(call quoted,IMAGES) $(if $(JSON),--json)
curves: ## Draw a training's loss and AP, as PNG and SVG
	@$(PY) curves --stack '$(STACK)' --model '$(MODEL)' --dataset $(call quoted,DATASET) --run '$(RUN)'

##@ OM
.PHONY: export om om-forecast om-info infer-om om-compare om-bisect om-precision
export: ## MODEL's latest training, or CHECKPOINT, as ONNX by stages, checked against PyTorch; SIZES=1024x1024,800x1344 BATCH=1,4 AIPP=1
	@$(PY) export $(TARGET) $(OF_SIZES) --checkpoint $(call quoted,CHECKPOINT) $(if $(AIPP),--aipp)
om: ## Convert them with atc for SOC in the mode PRECISION, after a forecast; FORCE=1
	@$(PY) om $(TARGET) $(OF_SIZES) $(CONVERTED)
om-forecast: ## What atc will fuse, what has no AI Core kernel, what stays float32; with IMAGES, what overflows in fp16
	@$(PY) om-forecast $(TARGET) $(OF_SIZES) $(CONVERTED) --images $(call quoted,IMAGES)
om-info: ## Exported models and OMs: sizes, SoC, atc's version and command; JSON=1 for machines
	@$(PY) om-info $(TARGET) $(OF_SIZES) $(if $(JSON),--json)
infer-om: ## Detect and draw objects in IMAGES with OMs on the first of DEVICES; JSON, latency by stage, throughput
	@$(PY) infer-om $(TARGET) $(OF_SIZES) $(CONVERTED) --images $(call quoted,IMAGES) --score '$(SCORE)' --bad '$(BAD)'
om-compare: ## PyTorch, its wrappers, ONNX, OMs on the same IMAGES, rung by rung; the first that breaks; AP; JSON=1
	@$(PY) om-compare $(TARGET) $(OF_SIZES) $(PROVEN) --checkpoint $(call quoted,CHECKPOINT) --score '$(SCORE)'
om-bisect: ## The first node of STAGE whose value in the OM is wrong, and why; CHUNK=50 for the whole table; JSON=1
	@$(PY) om-bisect $(TARGET) $(OF_SIZES) $(PROVEN) --stage $(call quoted,STAGE) --chunk '$(CHUNK)'
om-precision: ## The fewest operators that must stay float32 to keep AP within BOUND; continues where it was; JSON=1
	@$(PY) om-precision $(TARGET) $(OF_SIZES) $(PROVEN) --bound '$(BOUND)' --score '$(SCORE)'

##@ Reports
.PHONY: report
report: ## One page (HTML, Markdown) about the latest training, RUN or CHECKPOINT, with a verdict; RUN=a,b compares; REPORT_LANG=zh
	@$(PY) report --stack '$(STACK)' --model $(call quoted,MODEL) --dataset $(call quoted,DATASET) --run $(call quoted,RUN) --checkpoint $(call quoted,CHECKPOINT) --language '$(REPORT_LANG)' --score '$(SCORE)'

##@ Release
.PHONY: release check-release
release: ## All stacks' wheels for both architectures as a package index, with SBOM and provenance; STACK='vitdet blendmask' ARCH=x86_64; KEY signs it
	@$(PY) release $(RELEASED)
check-release: ## Verify it, install each stack from it into an empty environment, import and smoke-test (minutes); KEY, the public one
	@$(PY) check-release $(RELEASED)

##@ Development
.PHONY: docs lint clean
docs: ## Write the pages of docs/ that are made from tables: errors, settings
	@$(PY) docs
lint: ## Style, types, shell scripts, generated files
	@$(PY) test lint --stack '$(STACK)'
test-%: ## One suite: test-unit, -fetch, -image, -models, -sim, -wheel, -release, -mmcv, -detectron2, -npu_ops, -blendmask, -om, -npu, -examples; TESTS=… for a part of it
	@$(PY) test '$*' --stack '$(STACK)' --tests $(call quoted,TESTS)
bench-%: ## Print a benchmark's figures: bench-train, -step-time, -backbone, -pipeline, -om, -om-host, -om-pipeline, -pyacl, -counters, -score, -findings, -hccl, -wheel, -image, -fetch
	@$(PY) bench '$*' --stack '$(STACK)'
print-%: ## Print a variable of this file: make print-MODEL
	@printf '%s\n' '$($*)'
clean: ## Remove build/; the cache in the home folder stays
	@$(PY) clean
