"""Nothing leaves the machine: each entry point runs where a name server records what is asked, and no network is."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
CAT = ROOT / "petseg" / "serve" / "page" / "cat.jpg"
NAMESPACE = ["unshare", "--map-root-user", "--net", "--mount"]  # loopback alone, and mounts of its own
WATCHED = """
import json, os, pathlib, socket, subprocess, sys, threading

folder, programs = json.loads(sys.argv[1])
(pathlib.Path(folder) / "resolv.conf").write_text("nameserver 127.0.0.1")
subprocess.run(["mount", "--bind", folder + "/resolv.conf", "/etc/resolv.conf"], check=True)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
names, server = set(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))

def answer():
    while True:
        data, client = server.recvfrom(4096)
        at, labels = 12, []
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += data[at] + 1
        names.add(".".join(labels))
        server.sendto(data[:2] + b"\\x81\\x83" + data[4:6] + bytes(6) + data[12:], client)  # there is no such name

threading.Thread(target=answer, daemon=True).start()
running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for code in programs]
failed = [errors for process in running if (errors := process.communicate()[1]) and process.returncode]
print(json.dumps([sorted(names), failed]))
"""


def watched(folder, *programs):
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], check=False).returncode:
        pytest.skip("NO NAMESPACE: this machine lets no test start a network of its own, so privacy is not tested")
    home = folder / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not re.match("CI$|XDG_|ORT_|.*proxy", name, re.I)}
    kept |= {"HOME": str(home), "PETSEG_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kept.pop("PETSEG_RUNTIME", None)
    command = [*NAMESPACE, sys.executable, "-c", WATCHED, json.dumps([str(folder), programs])]
    done = subprocess.run(command, env=kept, stdout=subprocess.PIPE, text=True, check=True, cwd=folder, timeout=250)
    names, failed = json.loads(done.stdout.splitlines()[-1])
    assert failed == []
    files = [path.relative_to(home) for path in home.rglob("*") if path.is_file()]
    return names, [path for path in files if "matplotlib" not in path.parts]  # its list of fonts


def command(*words):
    return f"import subprocess, sys; subprocess.run([sys.executable, '-m', 'petseg', *{words!r}], check=True)"


BOTH = """
import petseg, numpy, time
for runtime in ("onnxruntime", "openvino"):
    petseg.Segmenter("unet_small", runtime=runtime)(numpy.zeros((40, 60, 3), numpy.uint8))
time.sleep(15)
"""

SERVE = f"""
import subprocess, sys, time, urllib.request
server = subprocess.Popen([sys.executable, "-m", "petseg", "serve", "--port", "0", "--no-open"],
    stdout=subprocess.PIPE, text=True)
try:
    url = server.stdout.readline().split()[0] + "/api/segment"
    request = urllib.request.Request(url, open({str(CAT)!r}, "rb").read(), {{"Content-Type": "image/jpeg"}})
    assert urllib.request.urlopen(request).status == 200
    time.sleep(15)
finally:
    server.kill()
    server.wait()
"""


@pytest.fixture(scope="module")
def by_themselves(tmp_path_factory):
    """What the runtimes ask for and write, waited for while petseg's entry points run: both mostly sleep."""
    pytest.importorskip("openvino")
    session = f"onnxruntime.InferenceSession({str(ROOT / 'petseg' / 'weights' / 'unet_small.onnx')!r})"
    onnxruntime = f"import onnxruntime, time; {session}; time.sleep(12)"
    openvino = "import openvino, time; time.sleep(8)"
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(watched, tmp_path_factory.mktemp("theirs"), onnxruntime, openvino)


@pytest.mark.slow
@pytest.mark.usefixtures("by_themselves")
def test_no_entry_point_asks_for_a_name_or_writes_into_the_home_folder(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(33):
        Image.new("RGB", (40, 30), (number, 99, 9)).save(photos / f"{number}.png")
    predict = command("predict", str(photos), "--out", str(tmp_path / "out"), "--only", "mask")
    export = command("export", "--model", "unet_small", "--out", str(tmp_path / "unet.xml"))
    bench = command("bench", "--model", "unet_small", "--turns", "1", "--size", "32")
    assert watched(tmp_path, BOTH, SERVE, predict, export, bench) == ([], [])
    assert len([*(tmp_path / "out").iterdir()]) == 33


@pytest.mark.slow
def test_the_runtimes_by_themselves_would_be_seen(by_themselves):
    names, files = by_themselves.result()
    assert len(names) == 2
    assert files
