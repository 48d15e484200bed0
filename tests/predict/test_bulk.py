"""Photos of a bucket, a folder or a web server, on this machine and on a Ray cluster of which a node is killed.

The S3 server is moto's, on loopback, asked by s3fs as any other; the cluster is Ray's own, of several nodes.
"""

import errno
import functools
import http.server
import json
import os
import re
import shutil
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from itertools import islice
from pathlib import Path

import pytest

from petseg import __version__
from petseg.cluster import connect
from petseg.predict import outputs
from petseg.predict.outputs import USUAL, Look
from petseg.predict.segmenter import Segmenter
from petseg.shipped import WEIGHTS
from tests.cli.test_commands import one_line_error, petseg, succeeds
from tests.clusters import cluster_of
from tests.conftest import refused
from tests.predict.test_outputs import below, pet

for package in ("fsspec", "pyarrow", "s3fs", "moto", "ray"):
    pytest.importorskip(package, reason=f"NO CLUSTER: {package} is missing; pip install 'petseg[cluster]' and moto")
boto3 = pytest.importorskip("boto3")
pa, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
bulk, manifest = (pytest.importorskip(f"petseg.predict.{name}") for name in ("bulk", "manifest"))
Store = pytest.importorskip("petseg.predict.store").Store
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray, botocore and moto, about themselves

MODEL = ("--model", "unet_small")
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.fixture(scope="module")
def s3():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        given = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", **KEYS}
        for name, value in given.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        yield boto3.client("s3")
    server.stop()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve photos in two folders; one is damaged, others are no photos."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(10):
        pet(folder / ("a" if number < 7 else "b/deep") / f"{number}.png", number=number)
    pet(folder / "a" / "0.jpg")  # beside 0.png
    (folder / "b" / "bad.jpg").write_bytes(b"words")
    for name in ("notes.txt", ".hidden.png", "b/old.mask.png"):
        (folder / name).write_bytes(b"words")
    return folder


@pytest.fixture(scope="module")
def plain(photos, tmp_path_factory):
    """What `petseg predict` of the folder writes, without a store and without Ray."""
    out = tmp_path_factory.mktemp("plain")
    jobs, _ = outputs.plan([photos], USUAL, out)
    outcomes = {
        str(job.photo.relative_to(photos)): outcome
        for job, outcome in zip(jobs, outputs.predict_jobs(Segmenter("unet_small", threads=1), jobs), strict=True)
    }
    return out, outcomes


def uploaded(s3, folder, name):
    s3.create_bucket(Bucket=name)
    for path in below(folder):
        s3.upload_file(str(folder / path), name, path)


def stored(s3, bucket):
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]
    return {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def contents(folder):
    return {name: (folder / name).read_bytes() for name in below(folder)}


def split(files):
    """Returns the files that are not the manifest, and the manifest's rows by file; none may be there twice."""
    parts = {name: content for name, content in files.items() if name.startswith("manifest/")}
    rows = [row for content in parts.values() for row in pq.read_table(BytesIO(content)).to_pylist()]
    by_file = {row["file"]: row for row in rows}
    assert len(rows) == len(by_file)
    return {name: content for name, content in files.items() if name not in parts}, by_file


def test_a_bucket_gets_the_files_of_the_folder_and_a_manifest_and_nothing_is_done_twice(s3, photos, plain):
    uploaded(s3, photos, "photos")
    s3.create_bucket(Bucket="masks")
    command = ("predict", "s3://photos", "--out", "s3://masks/of/today", *MODEL)
    result = petseg(*command)
    assert result.returncode == 1, result.stderr
    assert result.stdout.splitlines()[-1].startswith("12 photos: ")
    assert "petseg: 1 photo failed; s3://masks/of/today/manifest says why" in result.stderr
    out, outcomes = plain
    found = {key.removeprefix("of/today/"): content for key, content in stored(s3, "masks").items()}
    files, rows = split(found)
    assert files == contents(out)
    assert {*rows} == {*outcomes}
    for name, row in rows.items():
        if name == "b/bad.jpg":
            assert (row["status"], row["files"], row["boxes"]) == ("failed", None, None)
            assert row["reason"].startswith("cannot be decoded (not an image")
            continue
        summary = outcomes[name].result()
        assert (row["status"], row["width"], len(row["boxes"])) == ("done", summary.width, len(summary.boxes))
        assert row["foreground_class"]["name"] == summary.foreground_class.name
        assert row["presence"] == pytest.approx(summary.presence)
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert row["shares"]["cat"] + row["shares"]["dog"] == pytest.approx(row["foreground_share"], abs=0.1)
        assert {f"{name}" for name in row["files"].values()} <= {*files}
    again = petseg(*command)
    assert again.returncode == 1
    assert "petseg: 1 photo failed, 1 in earlier calls; s3://masks/of/today/manifest says why" in again.stderr
    assert "12 photos are in the manifest already" in again.stderr
    assert again.stdout == "0 photos: 0 with foreground, 0 without, 0 failed\n"
    assert {key.removeprefix("of/today/"): content for key, content in stored(s3, "masks").items()} == found


def work_of(source, out, model="unet_small"):
    segmenter = Segmenter(model, threads=1)
    work = bulk.work_of(segmenter, {}, (str(source), str(out)), USUAL, Look())
    return replace(work, listing=replace(work.listing, batch=2)), segmenter


def test_an_interrupted_call_goes_on_where_its_manifest_ends(photos, plain, tmp_path):
    work, segmenter = work_of(photos, tmp_path / "out")
    for ends_after in (2, 3, 99):
        rows = bulk.recorded(bulk.predict_here(work, segmenter), manifest.Manifest(work.listing.out, work.schema))
        seen = list(islice(rows, ends_after))
        rows.close()
    assert sum(map(len, seen)) == 2
    files, rows = split(contents(tmp_path / "out"))
    assert files == contents(plain[0])
    assert {*rows} == {*plain[1]}


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_of_two_calls_at_once_one_ends_and_no_photo_has_two_rows(kind, s3, photos, plain, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "ROWS", 1)
    out = f"s3://twice-{kind}" if kind == "bucket" else tmp_path / "out"
    if kind == "bucket":
        s3.create_bucket(Bucket=f"twice-{kind}")
    (source := tmp_path / "in").mkdir()
    shutil.copytree(photos, source, dirs_exist_ok=True)
    (source / "0.png").symlink_to(tmp_path / "never.png")  # a row of its own file, which the next call removes
    work, segmenter = work_of(source, out)
    list(islice(bulk.recorded(bulk.predict_here(work, segmenter), manifest.Manifest(work.listing.out, work.schema)), 1))
    calls = [
        bulk.recorded(bulk.predict_here(work, segmenter), manifest.Manifest(work.listing.out, work.schema))
        for _ in range(2)
    ]
    first = [next(calls[0])]
    refused("another call has written to its manifest since this one began; run the command again when", next, calls[1])
    first += calls[0]
    assert sum(map(len, first)) == 12
    files, rows = split(stored(s3, f"twice-{kind}") if kind == "bucket" else contents(out))
    assert files == contents(plain[0])
    assert {*rows} == {*plain[1], "0.png"}


class Meeting(Store):
    """A store at which two calls write at the same moment."""

    barrier = threading.Barrier(2)

    def write(self, files):
        self.barrier.wait(60)
        super().write(files)


def test_of_two_calls_that_write_at_the_same_moment_one_at_least_takes_its_rows_back(photos, tmp_path):
    work, _ = work_of(photos, tmp_path)
    out = Store(str(tmp_path / "out"))
    row = pa.Table.from_pylist([{"file": "a.png", "status": "done"}], work.schema)

    def at_once(act, *each):
        """Returns how many of two calls succeed."""
        with ThreadPoolExecutor(2) as pool:
            errors = [ends.exception() for ends in [pool.submit(act, *one) for one in each]]
        assert all("another call has written" in str(error) for error in errors if error)
        return errors.count(None)

    begun = at_once(manifest.Manifest, *[(Meeting(out.url), work.schema)] * 2)
    assert begun == len(below(tmp_path / "out")) <= 1
    manifest.Manifest(out, work.schema)
    others = [manifest.Manifest(Meeting(out.url), work.schema) for _ in range(2)]
    for other in others:
        other.add(row)
    assert at_once(manifest.Manifest.flush, *[(other,) for other in others]) == len(manifest.Finished(out)) <= 1


def test_what_no_photo_can_be_read_from_is_a_row_and_the_others_are_done(tmp_path, monkeypatch):
    source, out, long = tmp_path / "in", tmp_path / "out", f"{'x' * 250}.png"
    for name in ("a.png", long, "locked/b.png", os.fsdecode(b"caf\xe9/c.png"), os.fsdecode(b"\xff.png")):
        pet(source / name)
    os.mkfifo(source / "pipe.jpg")
    (source / "link.jpg").symlink_to("pipe.jpg")
    scandir, refusing = os.scandir, [True]

    def listed(path):
        if refusing[0] and Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listed)
    command = ("predict", source.as_uri(), "--out", out, "--only", "mask", *MODEL)
    result = petseg(*command)
    assert (result.returncode, result.stdout.splitlines()[-1][:9]) == (1, "5 photos:")
    files, rows = split(contents(out))
    assert {*files} == {"a.mask.png"}
    status = {name: (row["status"], row["reason"]) for name, row in rows.items()}
    utf8 = ("failed", "its name is not UTF-8; rename it")
    assert (status.pop("a.png"), status.pop("\\udcff.png"), status.pop("caf\\udce9/c.png")) == (
        ("done", None),
        utf8,
        utf8,
    )
    wanted = {long: ("failed", "(File name too long)"), "locked": ("unread", "cannot be listed (Permission denied)")}
    assert {*status} == {*wanted}
    for name, (kind, reason) in wanted.items():
        assert status[name][0] == kind
        assert reason in status[name][1]
    refusing.clear()
    refusing.append(False)
    assert "4 photos are in the manifest already" in petseg(*command).stderr
    assert {*split(contents(out))[0]} == {"a.mask.png", "locked/b.mask.png"}


def test_a_photo_whose_files_have_too_long_a_key_is_a_row_and_the_others_are_done(s3, tmp_path):
    folder = f"{'y' * 249}/" * 4
    fitting, long = f"{folder}{'x' * 12}", f"{folder}{'é' * 6}x"  # with .overlay.png 1,024 and 1,025 bytes
    for bucket in ("long", "covered"):
        s3.create_bucket(Bucket=bucket)
    for own in (fitting, long):
        s3.put_object(Bucket="long", Key=f"{own}.png", Body=pet(tmp_path / "a.png").read_bytes())
    result = petseg("predict", "s3://long", "--out", "s3://covered", "--only", "mask", "--only", "overlay", *MODEL)
    assert (result.returncode, result.stdout.splitlines()[-1][:9]) == (1, "2 photos:")
    files, rows = split(stored(s3, "covered"))
    assert {*files} == {f"{fitting}.mask.png", f"{fitting}.overlay.png"}
    assert (rows[f"{fitting}.png"]["status"], rows[f"{long}.png"]["status"]) == ("done", "failed")
    wanted = r"has 1,025 bytes, at most 1,024 are taken\); give the photo or the folder a shorter name$"
    assert re.search(wanted, rows[f"{long}.png"]["reason"])


def test_photos_of_a_part_that_a_power_cut_left_empty_are_done_again(photos, plain, tmp_path):
    work, segmenter = work_of(photos, tmp_path / "out")
    for ends_after in (2, 99):
        rows = bulk.recorded(bulk.predict_here(work, segmenter), manifest.Manifest(work.listing.out, work.schema))
        assert list(islice(rows, ends_after))
        rows.close()
    part = sorted((tmp_path / "out" / "manifest").iterdir())[1]
    content = part.read_bytes()
    part.write_bytes(b"words")
    finished = manifest.Finished(work.listing.out)
    damaged = r"manifest: cannot be read \(.*\); restore the damaged part, or remove it"
    refused(damaged, len, finished)
    refused(damaged, finished.among, ["a/1.png"])
    part.write_bytes(b"")
    assert sum(map(len, work.listing.batches())) == len(pq.read_table(BytesIO(content))) == 4
    list(bulk.recorded(bulk.predict_here(work, segmenter), manifest.Manifest(work.listing.out, work.schema)))
    part.unlink()
    files, rows = split(contents(tmp_path / "out"))
    assert files == contents(plain[0])
    assert {*rows} == {*plain[1]}


def test_what_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    pet(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "later.png")
    command = ("predict", (tmp_path / "in").as_uri(), "--out", tmp_path / "out", "--only", "mask", *MODEL)
    assert petseg(*command).returncode == 1
    _, rows = split(contents(tmp_path / "out"))
    assert {name: row["status"] for name, row in rows.items()} == {"a.png": "done", "b.png": "unread"}
    assert "No such file" in rows["b.png"]["reason"]
    pet(tmp_path / "later.png")
    succeeds(*command)
    files, rows = split(contents(tmp_path / "out"))
    assert {name: row["status"] for name, row in rows.items()} == {"a.png": "done", "b.png": "done"}
    assert {*files} == {"a.mask.png", "b.mask.png"}
    monkeypatch.setattr(bulk, "ALL_UNREAD", 2)
    for name in ("1", "2", "3"):
        (tmp_path / "in" / f"{name}.png").symlink_to(tmp_path / "never.png")
    (tmp_path / "in" / "a.png").unlink()
    (tmp_path / "in" / "b.png").unlink()
    command = (*command[:3], tmp_path / "new", *command[4:])
    assert "none of the first 3 photos can be read" in one_line_error(petseg(*command))


@contextmanager
def served(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_files_of_a_web_server_s_photos_have_decoded_names_where_these_are_safe(tmp_path):
    names = {  # photo -> its files' name
        "my cat.png": "my cat",
        "ein Tag/Käfer.png": "ein Tag/Käfer",
        "100%25.png": "100%25",  # which is 100%2525.png there
        "why?.png": "why%3F",
        r"a\b.png": "a%5Cb",
    }
    for name in names:
        pet(tmp_path / "in" / name)
    with served(tmp_path / "in") as url:
        succeeds("predict", f"{url}/", "--out", tmp_path / "out", "--only", "mask", *MODEL)
        succeeds("predict", f"{url}/my%20cat.png", "--out", tmp_path / "one", "--only", "mask", *MODEL)
    files, rows = split(contents(tmp_path / "out"))
    assert {*files} == {f"{name}.mask.png" for name in names.values()}
    assert rows["ein%20Tag/K%C3%A4fer.png"]["files"] == {"mask": "ein Tag/Käfer.mask.png"}
    assert {*split(contents(tmp_path / "one"))[0]} == {"my cat.mask.png"}


@pytest.mark.parametrize("name", ["..", "%2E%2E", "a%2Fb", "..%2Fa", "a%00b", "a%0Ab", "%2Ea", "a%20", "%ff", "c%3A"])
def test_a_name_that_is_not_safe_decoded_stays_as_it_is(name):
    assert Store("https://example.org").plain(name) == name
    assert Store("s3://photos").plain("my%20cat") == "my%20cat"  # as the object is called


def test_a_web_server_s_folder_and_a_single_photo_are_read(photos, plain, tmp_path):
    with served(photos) as url:
        whole = petseg("predict", f"{url}/", "--out", tmp_path / "all", *MODEL)
        one = petseg("predict", f"{url}/a/1.png", "--out", tmp_path / "one", "--json", *MODEL)
    assert whole.returncode == 1, whole.stderr
    assert split(contents(tmp_path / "all"))[0] == contents(plain[0])
    row = json.loads(one.stdout)
    assert (row["file"], row["status"]) == ("1.png", "done")
    assert split(contents(tmp_path / "one"))[0] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("s3://nowhere --out masks", "s3://nowhere: cannot be listed (The specified bucket does not exist)"),
        ("s3://given --out s3://nowhere", "s3://nowhere/manifest/part-000000-"),
        ("s3://given/x.png --out masks", "s3://given/x.png: cannot be read"),
        ("s3://given/text --out masks", "s3://given/text: no images in this folder"),
        ("s3://given --out s3://given/masks", "lies in the folder of photos s3://given; name one outside of it"),
        ("photos --out photos/masks --ray auto", "lies in the folder of photos"),
        ("s3://given --out s3://full", "s3://full: holds text and no manifest of petseg; name an empty folder"),
        ("s3://given", "take one folder or bucket, and an --out"),
        ("s3://given photos --out masks", "take one folder or bucket, and an --out"),
        ("- --out masks --ray auto", "take one folder or bucket, and an --out"),
        ("foo://x --out masks", "foo://x: cannot be opened (Protocol not known: foo)"),
        ("s3:// --out masks", "s3://: names no bucket"),
        ("photos --out masks --ray 127.0.0.1:9", "--ray 127.0.0.1:9: no Ray cluster answers there"),
        ("photos --out masks --ray here", "--ray here: is no address of a Ray cluster"),
        ("s3://given --out masks --model unett", "model 'unett' is unknown"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(words, message, s3, tmp_path):
    if not any(bucket["Name"] == "given" for bucket in s3.list_buckets()["Buckets"]):
        s3.create_bucket(Bucket="given")
        s3.create_bucket(Bucket="full")
        s3.upload_file(str(pet(tmp_path / "x.png")), "given", "a/x.png")
        s3.put_object(Bucket="given", Key="text/a.txt", Body=b"words")
        s3.put_object(Bucket="full", Key="text", Body=b"words")
    pet(tmp_path / "photos" / "a.png")
    before = {bucket: stored(s3, bucket) for bucket in ("given", "full")}, below(tmp_path)
    assert message in one_line_error(petseg("predict", *words.split(), cwd=tmp_path))
    assert ({bucket: stored(s3, bucket) for bucket in ("given", "full")}, below(tmp_path)) == before


def test_another_model_does_not_go_on_with_a_manifest(photos, tmp_path):
    succeeds("predict", (photos / "b" / "deep").as_uri(), "--out", tmp_path, "--json", *MODEL)
    line = one_line_error(petseg("predict", (photos / "b" / "deep").as_uri(), "--out", tmp_path, "--json", "--flip"))
    assert re.search(r"was begun with model '\w+', this call has '\w+'; give the same", line)


def test_a_bucket_that_may_not_be_read_and_missing_credentials_are_one_line(s3, tmp_path):
    import s3fs

    s3.create_bucket(Bucket="private")
    iam = boto3.client("iam")
    iam.create_user(UserName="nobody")
    key = iam.create_access_key(UserName="nobody")["AccessKey"]
    ours = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}

    def asked(count):
        url = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(url, str(count).encode(), {"Content-Type": "text/plain"})).close()

    command = ("predict", "s3://private", "--out", tmp_path / "masks")
    asked(0)  # from now on the server looks at who asks
    try:
        s3fs.S3FileSystem.clear_instance_cache()
        line = one_line_error(petseg(*command, **ours))
    finally:
        asked("inf")
    assert "s3://private: cannot be listed (" in line
    assert "credentials with permission to read" in line
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.MonkeyPatch.context() as patch:
        for name in KEYS:
            patch.delenv(name)
        line = one_line_error(petseg(*command, HOME=str(tmp_path)))
    s3fs.S3FileSystem.clear_instance_cache()
    assert "s3://private: cannot be listed (Unable to locate credentials)" in line
    assert below(tmp_path) == set()


@pytest.mark.parametrize("module", ["fsspec", "pyarrow", "ray"])
def test_a_missing_package_is_told_with_its_extra(module, photos, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    for name in ("petseg.predict.store", "petseg.predict.manifest", "petseg.predict.bulk"):
        monkeypatch.delitem(sys.modules, name)
    line = one_line_error(petseg("predict", photos, "--out", tmp_path, "--ray", "auto"))
    assert line == f"petseg: this command needs {module}; pip install 'petseg[cluster]'"


@pytest.fixture(scope="module")
def cluster(s3):
    with cluster_of({}, {}) as cluster:
        yield cluster


@pytest.fixture
def joined(cluster):
    import ray

    connect(cluster.address)
    yield cluster
    ray.shutdown()


def computing(node):
    """Returns whether a worker of the node has photos in hand: Ray names its process after what it does."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    names = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children if Path(f"/proc/{child}").exists()]
    return any(b"MapWorker(MapBatches(Worker)).submit" in name for name in names)


def begun(source, out, model="unet_small"):
    work, _ = work_of(source, out, model)
    return work, manifest.Manifest(work.listing.out, work.schema)


def test_a_machine_that_is_not_as_this_one_is_one_line(photos, tmp_path):
    work, _ = begun(photos, tmp_path)
    parcel = bulk.packed(next(work.listing.batches()))
    other = replace(work, model=replace(work.model, sha256="0" * 64))
    nowhere = replace(work, listing=replace(work.listing, out=Store(str(tmp_path / "elsewhere"))))
    for given, version, match in (
        (other, __version__, "its unet_small is another file; install the same petseg on all machines"),
        (work, "0.0", rf"petseg is {re.escape(__version__)} there, 0.0 here"),
        (nowhere, __version__, "does not hold the manifest there; name a place that all machines share"),
    ):
        done, mistake = bulk.opened(bulk.Worker(given, version)(parcel))
        assert done is None
        assert re.match(f"machine .*: .*{match}", mistake)
    assert len(bulk.opened(bulk.Worker(work, __version__)(parcel))[0]) == 2


def test_a_worker_s_mistake_comes_through_the_head_as_one_line(joined, photos, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(ray.util.client.ray, "is_connected", lambda: True)  # as it is with ray://
    work, _ = begun(photos, tmp_path)
    other = replace(work, model=replace(work.model, sha256="0" * 64))
    refused("^machine .*: its unet_small is another file", list, bulk.predict_on_ray(other))


@pytest.mark.slow
def test_a_node_killed_in_the_middle_changes_nothing(joined, s3, photos, tmp_path):
    """The model is a file that no other machine has; the node is killed while it has photos in hand."""
    shutil.copy(WEIGHTS / "unet_small.onnx", tmp_path / "mine.onnx")
    more = tmp_path / "more"
    for copy in range(3):
        shutil.copytree(photos, more / str(copy))
    uploaded(s3, more, "pictures")
    s3.create_bucket(Bucket="results")
    work, kept = begun("s3://pictures", "s3://results", tmp_path / "mine.onnx")
    here, segmenter = work_of(more, tmp_path / "here", tmp_path / "mine.onnx")
    (tmp_path / "mine.onnx").unlink()
    begins, killed = threading.Event(), list[object]()

    def kill():
        begins.wait()
        while not killed:
            if busy := [node for node in joined.worker_nodes if computing(node)]:
                joined.remove_node(busy[0], allow_graceful=False)
                killed.append(busy[0])

    watching = threading.Thread(target=kill, daemon=True)
    watching.start()
    for _ in bulk.recorded(bulk.predict_on_ray(work), kept):
        begins.set()
    watching.join(1)
    assert killed
    list(bulk.recorded(bulk.predict_here(here, segmenter), manifest.Manifest(here.listing.out, here.schema)))
    assert split(stored(s3, "results")) == split(contents(tmp_path / "here"))
