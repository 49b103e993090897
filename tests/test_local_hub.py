"""The tests' own Hub, asked by the real client: what it keeps, whom it refuses, and what goes wrong on demand."""

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from local_hub import LocalHub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own upload does not
WEIGHTS = bytes(range(256)) * 400


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def ann(hub):
    return HfApi(endpoint=hub.url, token="hf_ann_write")


def commit(api, message="first", repo_type=None, **files):
    operations = [CommitOperationAdd(name.replace("__", "."), content) for name, content in files.items()]
    return api.create_commit("ann/a", operations, commit_message=message, repo_type=repo_type)


def status(error):
    return error.value.response.status_code


def test_who_may_do_what(hub, ann, tmp_path):
    assert ann.whoami()["name"] == "ann"
    nobody = HfApi(endpoint=hub.url, token=False)
    with pytest.raises(HfHubHTTPError) as unknown:
        HfApi(endpoint=hub.url, token="hf_stranger").create_repo("ann/a")
    assert status(unknown) == 401
    with pytest.raises(HfHubHTTPError) as anonymous:
        nobody.create_repo("ann/a")
    assert status(anonymous) == 401
    for token in ("hf_ann_read", "hf_bob_write"):
        with pytest.raises(HfHubHTTPError) as forbidden:
            HfApi(endpoint=hub.url, token=token).create_repo("ann/a")
        assert status(forbidden) == 403
    ann.create_repo("ann/a", private=True)
    commit(ann, notes=b"secret")
    for api in (nobody, HfApi(endpoint=hub.url, token="hf_bob_write")):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("ann/a")
    reader = HfApi(endpoint=hub.url, token="hf_ann_read")
    assert reader.model_info("ann/a").private
    with pytest.raises(HfHubHTTPError) as forbidden:
        commit(reader, notes=b"new")
    assert status(forbidden) == 403
    with open(reader.hf_hub_download("ann/a", "notes", cache_dir=tmp_path), "rb") as file:
        assert file.read() == b"secret"


def test_what_is_there_already_and_what_is_not_there(hub, ann, tmp_path):
    ann.create_repo("ann/a")
    with pytest.raises(HfHubHTTPError) as conflict:
        ann.create_repo("ann/a")
    assert status(conflict) == 409
    assert ann.create_repo("ann/a", exist_ok=True).repo_id == "ann/a"
    commit(ann, notes=b"1")
    for name, error in {"ann/b": RepositoryNotFoundError, "ann/a": RemoteEntryNotFoundError}.items():
        with pytest.raises(error):
            ann.hf_hub_download(name, "other", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        ann.hf_hub_download("ann/a", "notes", revision="0123456789" * 4, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="sdk"):
        ann.create_repo("ann/s", repo_type="space")
    ann.create_repo("ann/s", repo_type="space", space_sdk="gradio")
    assert ann.space_info("ann/s").sdk == "gradio"


def test_history_is_kept_and_an_old_commit_stays_what_it_was(hub, ann, tmp_path):
    ann.create_repo("ann/a")
    first = commit(ann, notes=b"1", sub__bin=WEIGHTS).oid
    second = commit(ann, "second", notes=b"2").oid
    assert [one.title for one in ann.list_repo_commits("ann/a")] == ["second", "first", "initial commit"]
    for revision, content in {first: b"1", second: b"2", "main": b"2"}.items():
        with open(ann.hf_hub_download("ann/a", "notes", revision=revision, cache_dir=tmp_path), "rb") as file:
            assert file.read() == content
    assert commit(ann, "third", notes=b"2", sub__bin=WEIGHTS).oid == second  # nothing new: no commit
    with pytest.raises(HfHubHTTPError) as outdated:
        operations = [CommitOperationAdd("notes", b"3")]
        ann.create_commit("ann/a", operations, commit_message="late", parent_commit=first)
    assert status(outdated) == 412
    ann.create_commit("ann/a", [CommitOperationDelete("notes")], commit_message="delete")
    assert ann.list_repo_files("ann/a") == ["sub.bin"] and ann.list_repo_files("ann/a", revision=first) != ["sub.bin"]


def test_large_files_are_sent_once_and_read_in_parts(hub, ann):
    for kind in ("model", "dataset"):
        ann.create_repo("ann/a", repo_type=kind)
        commit(ann, repo_type=kind, big__bin=WEIGHTS, small=b"text")
        commit(ann, repo_type=kind, copy__bin=WEIGHTS)
    assert len(hub.asked("PUT", "/large/")) == 1
    entries = {entry.path: entry for entry in ann.list_repo_tree("ann/a")}
    assert entries["big.bin"].lfs.size == len(WEIGHTS) and entries["small"].lfs is None
    files = HfFileSystem(endpoint=hub.url, token="hf_ann_write", skip_instance_cache=True)
    with files.open("datasets/ann/a/copy.bin", "rb", block_size=1000) as file:
        file.seek(70_000)
        assert file.read(500) == WEIGHTS[70_000:70_500]


def test_folders_are_listed(hub, ann):
    ann.create_repo("ann/a")
    operations = [CommitOperationAdd(path, b"x") for path in ("data/one/1.txt", "data/2.txt", "3.txt")]
    ann.create_commit("ann/a", operations, commit_message="folders")
    assert sorted(entry.path for entry in ann.list_repo_tree("ann/a")) == ["3.txt", "data"]
    assert sorted(entry.path for entry in ann.list_repo_tree("ann/a", "data", recursive=True)) == [
        "data/2.txt",
        "data/one",
        "data/one/1.txt",
    ]
    assert [entry.path for entry in ann.get_paths_info("ann/a", ["3.txt", "none"])] == ["3.txt"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(ann.list_repo_tree("ann/a", "none"))


def test_a_card_with_bad_metadata_is_refused_before_anything_is_sent(hub, ann):
    ann.create_repo("ann/a")
    for metadata in ("license: [", "license: free", "model-index:\n- {name: a, results: [{task: {type: b}}]}"):
        with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
            commit(ann, README__md=f"---\n{metadata}\n---\n# A".encode(), big__bin=WEIGHTS)
    assert not hub.asked("PUT", "/large/") and len(hub.repos["models", "ann/a"].commits) == 1


def test_faults_come_as_often_as_ordered(hub, ann, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    ann.create_repo("ann/a")
    hub.fail("PUT", "/large/", "cut")
    hub.fail("POST", "/preupload/", 500)
    hub.fail("POST", "/preupload/", 429)
    commit(ann, big__bin=WEIGHTS)
    assert len(hub.asked("PUT", "/large/")) == 2 and len(hub.asked("POST", "/preupload/")) == 3
    hub.fail("GET", "big.bin", "cut")
    path = ann.hf_hub_download("ann/a", "big.bin", cache_dir=tmp_path)
    assert len(hub.asked("GET", "/resolve/")) == 2  # the second asked for the missing half
    with open(path, "rb") as file:
        assert file.read() == WEIGHTS
    hub.fail("GET", "big.bin", "corrupt")
    path = ann.hf_hub_download("ann/a", "big.bin", cache_dir=tmp_path / "other")
    with open(path, "rb") as file:
        damaged = file.read()
    assert len(damaged) == len(WEIGHTS) and sum(a != b for a, b in zip(damaged, WEIGHTS, strict=True)) == 1
