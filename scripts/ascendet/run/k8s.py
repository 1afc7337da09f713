"""`make k8s`: write Kubernetes jobs of two kinds that train on several nodes, from one template, checked offline."""

from __future__ import annotations

import argparse
import re
import string
from dataclasses import dataclass
from typing import Any

from ascendet import paths
from ascendet.containers import image
from ascendet.containers.image import ImageRequest
from ascendet.core import files, options
from ascendet.errors import AscendetError
from ascendet.machine import arch, devices, needs
from ascendet.run import target

# MindCluster's node labels. The label for A3 follows its naming scheme; we found no document that states it.
_ACCELERATORS = {"910b": "module-910b-8", "a3": "module-a3-16"}
_KUBERNETES = "1.28"  # the schemas to check against; the oldest that the fields need


def configure_parser(parser: argparse.ArgumentParser) -> None:
    """Add the stage's options."""
    target.add_options(parser)
    parser.add_argument("--nnodes", type=options.number("NNODES", 2), default=2, help="nodes")
    parser.add_argument("--host-network", action="store_true", help="use the nodes' own network")
    parser.add_argument(
        "--device-group",
        type=options.number("DEVICE_GROUP", 0),
        default=1000,
        help="the gid of HwHiAiUser on the nodes",
    )


def execute(args: argparse.Namespace) -> None:
    """Write the jobs, and print the commands that start them."""
    folder = paths.BUILD / "k8s"
    folder.mkdir(parents=True, exist_ok=True)
    for kind, job in make_jobs(JobRequest.read(args)).items():
        target = folder / f"{job['metadata']['name']}-{kind}.yaml"
        files.write_text(target, render(job))
        print(f"kubectl apply --filename {paths.shorten(target)}")


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A training on `nodes` nodes, each with the same devices, in an image.

    `host_network` puts the pods on the nodes' own network; `device_group` is the nodes' gid of HwHiAiUser.
    """

    image: ImageRequest
    model: str
    dataset: str
    devices: str
    nodes: int
    host_network: bool
    device_group: int

    @classmethod
    def read(cls, args: argparse.Namespace) -> JobRequest:
        """Return the request that the stage's options describe."""
        return cls(
            image=ImageRequest.read(args),
            model=args.model,
            dataset=args.dataset,
            devices=args.devices,
            nodes=args.nnodes,
            host_network=args.host_network,
            device_group=args.device_group,
        )


def make_jobs(request: JobRequest) -> dict[str, Any]:
    """Return the jobs by kind, "acjob" and "vcjob".

    Raises
    ------
    AscendetError
        `usage`: the resulting pod is not valid. `model-unknown`, `dataset-unknown`, `devices-invalid`, `soc-unknown`.
    """
    import yaml

    stack = request.image.stack
    if target.check_names(stack, request.model, request.dataset):
        raise AscendetError(
            "usage",
            "MODEL must be one of the stack's models: the pods do not see this machine's files",
            expected=", ".join(stack.models),
            found=f"MODEL={request.model}",
            hint="put the configuration into the image: docs/add-a-model.md",
        )
    chosen = devices.parse(request.devices, devices.PER_NODE)
    chip, machine = stack.chip(request.image.soc), arch.KNOWN[request.image.machine]
    name = re.sub(r"[^a-z0-9]+", "-", f"{request.model}-{request.dataset}")
    # MindCluster's rule: HCCL needs the address on the nodes' own network, else the name of the interface.
    interface = (
        "{ name: HCCL_SOCKET_IFNAME, value: eth0 }\n          - { name: GLOO_SOCKET_IFNAME, value: eth0 }"
    )
    if request.host_network:
        interface = "{ name: HCCL_IF_IP, valueFrom: { fieldRef: { fieldPath: status.hostIP } } }"
    words = {
        "NAME": name,
        "CHIP": chip,
        "HOST_ARCH": machine.mindcluster,
        "ACCELERATOR": _ACCELERATORS[chip],
        "IMAGE": request.image.ready or image.make_tag(stack, request.image.soc, machine.name),
        "MODEL": request.model,
        "DATASET": request.dataset,
        "DEVICES": ",".join(str(number) for number in range(len(chosen))),
        "COUNT": len(chosen),
        "NNODES": request.nodes,
        "WORKERS": request.nodes - 1,
        "SHM": needs.SHM_GIB_PER_DEVICE * len(chosen),
        "HOST_NETWORK": str(request.host_network).lower(),
        "DNS_POLICY": "ClusterFirstWithHostNet" if request.host_network else "ClusterFirst",
        "DEVICE_GROUP": request.device_group,
        "INTERFACE": interface,
    }
    template = (paths.ROOT / "docker" / "k8s" / "job.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(string.Template(template).substitute(words))
    check_pod(content["pod"])
    return {kind: content[kind] for kind in ("acjob", "vcjob")}


def check_pod(pod: dict[str, Any]) -> None:
    """Check the pod against Kubernetes' published schema. No package has schemas of the jobs' own kinds."""
    import kubernetes_validate

    complete = {"apiVersion": "v1", "kind": "Pod", **pod}
    try:
        kubernetes_validate.validate(complete, _KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        place = ".".join(map(str, error.path))
        raise AscendetError(
            "usage",
            "the job must be a valid Kubernetes pod",
            found=f"{place}: {error.message}",
            hint="edit docker/k8s/job.yaml",
        ) from error


def render(job: dict[str, Any]) -> str:
    """Return a job as YAML without anchors, because people edit it and some tools cannot read anchors."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    return yaml.dump(job, Dumper=Plain, sort_keys=False)
