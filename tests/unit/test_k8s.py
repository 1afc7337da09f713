"""The Kubernetes jobs: what MindCluster's documentation asks for, and Kubernetes' own schema."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import yaml
from ascendet import paths
from ascendet.errors import AscendetError
from ascendet.run import k8s


def jobs(*more: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    k8s.configure_parser(parser)
    words = ["--model=vitdet-b", "--dataset=coco", "--devices=0,1,2,3,4,5,6,7", "--arch=arm64"]
    return k8s.make_jobs(k8s.JobRequest.read(parser.parse_args([*words, *more])))


def pods(kind: str, *more: str) -> list[tuple[int, Any]]:
    spec = jobs(*more)[kind]["spec"]
    parts = spec["replicaSpecs"].values() if kind == "acjob" else spec["tasks"]
    return [(part["replicas"], part["template"]) for part in parts]


def environ(pod: Any) -> dict[str, Any]:
    return {
        item["name"]: item.get("value") or item["valueFrom"] for item in pod["spec"]["containers"][0]["env"]
    }


@pytest.mark.parametrize("kind", ["acjob", "vcjob"])
def test_jobs_are_what_the_cluster_expects(kind: str) -> None:
    job = jobs("--nnodes=4")[kind]
    expected = {"acjob": ("mindxdl.gitee.com/v1", "AscendJob"), "vcjob": ("batch.volcano.sh/v1alpha1", "Job")}
    assert (job["apiVersion"], job["kind"]) == expected[kind]
    assert job["spec"]["schedulerName"] == "volcano"
    (one, master), (rest, worker) = pods(kind, "--nnodes=4")
    assert (one, rest) == (1, 3)
    assert master == worker
    (box,) = master["spec"]["containers"]
    assert box["name"] == "ascend"
    assert box["ports"] == [{"name": "ascendjob-port", "containerPort": 2222}]
    assert box["resources"]["limits"] == {"huawei.com/Ascend910": 8} == box["resources"]["requests"]
    assert master["spec"]["nodeSelector"] == {"host-arch": "huawei-arm", "accelerator-type": "module-910b-8"}
    assert environ(master)["ASCEND_VISIBLE_DEVICES"] == {
        "fieldRef": {"fieldPath": "metadata.annotations['huawei.com/Ascend910']"}
    }
    assert (environ(master)["NNODES"], environ(master)["DEVICES"]) == ("4", "0,1,2,3,4,5,6,7")


def test_pods_are_not_root_and_write_only_results() -> None:
    (_, pod), _ = pods("acjob", "--device-group=1500")
    spec, box = pod["spec"], pod["spec"]["containers"][0]
    assert (spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["runAsUser"]) == (True, 1000)
    assert spec["securityContext"]["supplementalGroups"] == [1500]
    assert box["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "privileged" not in k8s.render(jobs()["acjob"])


def test_hccl_gets_an_address_on_the_hosts_network_only() -> None:
    (_, pod), _ = pods("acjob")
    assert environ(pod)["HCCL_SOCKET_IFNAME"] == environ(pod)["GLOO_SOCKET_IFNAME"] == "eth0"
    assert "HCCL_IF_IP" not in environ(pod)
    (_, pod), _ = pods("acjob", "--host-network")
    assert environ(pod)["HCCL_IF_IP"] == {"fieldRef": {"fieldPath": "status.hostIP"}}
    assert "HCCL_SOCKET_IFNAME" not in environ(pod)
    assert pod["spec"]["hostNetwork"] is True


def test_soc_family_chooses_image_and_machines() -> None:
    (_, pod), _ = pods("vcjob", "--soc=Ascend910_9391")
    assert "-a3-" in pod["spec"]["containers"][0]["image"]
    assert pod["spec"]["nodeSelector"]["accelerator-type"] == "module-a3-16"


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("usage", "--nnodes=1"),
        ("usage", "--nnodes=two"),
        ("usage", "--device-group=HwHiAiUser"),
        ("soc-unknown", "--soc=910B3"),
        ("usage", "--arch=riscv64"),
        ("model-unknown", "--model=x"),
        ("devices-invalid", "--devices=0,0"),
    ],
)
def test_bad_values_are_named(name: str, option: str) -> None:
    with pytest.raises(AscendetError) as caught:
        jobs(option)
    assert caught.value.name == name


def test_schema_refuses_what_is_no_pod() -> None:
    """Guards the check itself: a misspelt field must not pass."""
    (_, pod), _ = pods("acjob")
    pod["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(AscendetError, match="must be a valid Kubernetes pod"):
        k8s.check_pod(pod)


def test_files_are_plain_yaml(build: object, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    k8s.configure_parser(parser)
    k8s.execute(parser.parse_args(["--model=vitdet-b", "--dataset=coco", "--devices=0"]))
    assert capsys.readouterr().out.count("kubectl apply --filename") == 2
    for file in (paths.BUILD / "k8s").iterdir():
        text = file.read_text()
        assert "&" not in text
        assert "*" not in text
        assert yaml.safe_load(text)["metadata"]["name"] == "vitdet-b-coco"
