"""Several ranks, started by torchrun, on the CPU: what one process computes, they compute together."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

from petseg.data.cache import cache_root
from petseg.errors import PetsegError
from petseg.storage import read_json
from petseg.training import distributed
from petseg.training.batches import load_splits
from petseg.training.checkpoint import BEST, load_weights
from petseg.training.inference import build_network, validate
from petseg.training.runs import read_metrics
from tests.conftest import CPU, TINY, tiny, train_on_cpu

# augmentation and dropout draw other numbers on each rank
PLAIN = [f"train.augment.{name}=0" for name in ("scale", "rotation", "shift", "colour")]
PLAIN += ["train.augment.flip=false", "train.precision=fp32", "train.dice_weight=0.5"]
SCRIPT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from petseg.config import RunConfig
from petseg.training import distributed
from petseg.training.batches import load_splits
from petseg.training.checkpoint import BEST, load_weights
from petseg.training.inference import build_network, validate
from petseg.training.loop import Execution, train
from petseg.data.cache import prepare
from petseg.data.sources import open_dataset
from tests.conftest import CPU
data, place, *configs = sys.argv[1:]
with distributed.joined(CPU.device):
    for number, config in enumerate(map(RunConfig.model_validate_json, configs)):
        prepared = prepare(open_dataset(Path(data), config.data), config.data.size)
        splits = load_splits(prepared, config, CPU.device)
        network = build_network(config.model, 3, CPU)
        load_weights(network.module, Path(place) / f"alone-{number}" / BEST)
        scores = asdict(validate(network, splits["val"]))
        run = Path(place) / f"together-{number}"
        train(config, prepared, run, Execution(CPU, splits=splits))
        if distributed.rank() == 0:
            (run / "validated.json").write_text(json.dumps(scores))
"""


def torchrun(*words, ranks=2):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PETSEG_CACHE": str(cache_root())}
    return [*launch, *map(str, words)], environment


def test_two_ranks_train_and_validate_as_one_process_does(prepared, pets_folder, tmp_path):
    # apart: Adam makes steps of the rate of gradients that are rounding alone, as behind a normalised, dead channel
    kinds = (
        (),
        ("model.batch_norm=false", "train.class_weights=median_frequency"),
        (f"train.init={tmp_path / 'alone-0'}", "train.frozen_epochs=1", "train.checkpoint_activations=true"),
        ("train.synchronise=false", "train.ema=0.5"),  # another training, each rank normalising its own part
    )
    configs = [tiny(*PLAIN, "train.epochs=2", "train.batch_size=7", *kind) for kind in kinds]  # parts of 4 and 3
    alone = [train_on_cpu(config, prepared, tmp_path / f"alone-{place}") for place, config in enumerate(configs)]
    (tmp_path / "script.py").write_text(SCRIPT)
    texts = [config.model_dump_json() for config in configs]
    command, environment = torchrun(tmp_path / "script.py", pets_folder, tmp_path, *texts)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    for place, config in enumerate(configs):
        run = tmp_path / f"together-{place}"
        together = read_metrics(run)
        assert [row.ranks for row in together] == [2, 2]
        for one, other in zip(alone[place], together, strict=True) if config.train.synchronise else ():
            assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)
            assert other.val_loss == pytest.approx(one.val_loss, rel=1e-3)
        # equal weights give equal counts, and a loss that was added up in another order
        splits = load_splits(prepared, config, CPU.device)
        network = build_network(config.model, 3, CPU)
        load_weights(network.module, tmp_path / f"alone-{place}" / BEST)
        wanted, found = asdict(validate(network, splits["val"])), read_json(run / "validated.json")
        assert found.pop("val_loss") == pytest.approx(wanted.pop("val_loss"), rel=1e-6)
        assert found == wanted
        kept = load_weights(network.module, run / BEST)
        scores = validate(network, splits["val"])
        assert together[kept - 1].val_loss == pytest.approx(scores.val_loss, rel=1e-6), "of the weights that are kept"


@pytest.fixture
def hosts():
    """Two network namespaces with an address each, which see only each other."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and the tool ip for network namespaces")
    places = {f"petseg{os.getpid()}{end}": f"10.213.7.{number}" for number, end in enumerate("ab", start=1)}

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        try:
            for name in places:
                ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here ({error.stderr.strip()})")
        first, second = places
        ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        for name, address in places.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield places
    finally:
        for name in places:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_two_hosts_train_as_one_process_does(hosts, prepared, pets_folder, tmp_path):
    settings = [*PLAIN, "train.batch_size=6"]
    words = [word for setting in (*TINY, *settings) for word in ("--set", setting)]
    run, first = tmp_path / "run", next(iter(hosts.values()))
    agents = []
    for number, (name, address) in enumerate(hosts.items()):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        launch += ["--node-rank", number, "--master-addr", first, "--local-addr", address]
        launch += ["-m", "petseg", "train", "--data", pets_folder, "--out", run, *words]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
        environment |= {"PETSEG_CACHE": str(tmp_path / name), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = ["ip", "netns", "exec", name, *map(str, launch)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        agents.append(subprocess.Popen(command, env=environment, **pipes))
    printed = [agent.communicate(timeout=240)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed
    together, alone = read_metrics(run), train_on_cpu(tiny(*settings), prepared, tmp_path / "alone")
    assert [row.ranks for row in together] == [2, 2]
    for one, other in zip(alone, together, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-4)
    assert all((tmp_path / name / "prepared").is_dir() for name in hosts), "each host prepares its own cache"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds a rank in /proc")
def test_a_killed_rank_ends_all_and_fewer_go_on(prepared, pets_folder, tmp_path):
    settings = [*PLAIN, "train.epochs=40"]
    config, run = tiny(*settings), tmp_path / "run"
    words = [word for setting in (*TINY, *settings) for word in ("--set", setting)]
    command, environment = torchrun("-m", "petseg", "train", "--data", pets_folder, "--out", run, *words)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (run / "metrics.jsonl").is_file():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
        ranks = [child for child in children if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes()]
        os.kill(int(ranks[0]), signal.SIGKILL)
        _, shown = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "petseg/training/" not in shown, "no traceback but torchrun's own"
    kept = len(read_metrics(run))
    assert 0 < kept < 40
    resumed = train_on_cpu(config, prepared, run, resume=True)
    assert [row.ranks for row in resumed] == [2] * kept + [1] * (40 - kept)
    whole = train_on_cpu(config, prepared, tmp_path / "whole")
    assert resumed[-1].val_loss == pytest.approx(whole[-1].val_loss, rel=0.05)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_batch_statistics_of_one_rank_are_those_of_torch(precision):
    torch.manual_seed(0)
    image = torch.randn(3, 8, 6, 5)
    image[1] += 3
    plain, ours = (nn.BatchNorm2d(8, affine=True) for _ in range(2))
    for layer in (plain, ours):
        nn.init.normal_(layer.weight)
    ours.load_state_dict(plain.state_dict())
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        ours.__class__ = distributed.SummedBatchNorm
        gradients = []
        for layer in (plain, ours):
            given = image.to(precision).requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                (layer(given).float() * torch.linspace(-1, 1, 5)).square().sum().backward()
            gradients.append((given.grad, layer.weight.grad, layer.bias.grad))
    finally:
        torch.distributed.destroy_process_group()
    for wanted, found in zip(gradients[0], gradients[1], strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())


def test_timm_s_layers_keep_their_activation(monkeypatch):
    layers = pytest.importorskip("timm.layers", reason="needs the extra models")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), layers.BatchNormAct2d(4, act_layer=nn.ReLU6)).eval()
    nn.init.normal_(plain[1].running_mean)
    image = torch.randn(2, 3, 5, 5)
    wanted = plain(image)
    monkeypatch.setattr(distributed, "count", lambda: 2)
    for backend in ("gloo", "nccl"):
        monkeypatch.setattr(torch.distributed, "get_backend", lambda backend=backend: backend)
        changed = distributed.synchronised(copy.deepcopy(plain))
        assert type(changed[1]) is not type(plain[1])
        torch.testing.assert_close(changed(image), wanted)


def test_one_process_needs_no_group():
    assert (distributed.rank(), distributed.count(), distributed.local_rank(), distributed.started()) == (
        0,
        1,
        0,
        False,
    )
    distributed.check_batch(1)


def test_more_ranks_than_images_a_batch_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 3)
    with pytest.raises(PetsegError, match=r"^train\.batch_size is 2 for 3 ranks; wanted one image a rank or more"):
        distributed.check_batch(2)
