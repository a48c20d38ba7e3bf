import re
import tomllib

from pipeline import provenance


def test_the_version_is_the_project_s_with_a_hash_of_its_sources():
    project = tomllib.loads((provenance._ROOT / "pyproject.toml").read_text())["project"]
    assert re.fullmatch(re.escape(project["version"]) + r"\+[0-9a-f]{8}", provenance.code_version())


def test_an_edited_source_is_another_version(tmp_path, monkeypatch):
    (tmp_path / "pipeline").mkdir()
    source = tmp_path / "pipeline" / "code.py"
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    versions = []
    for text in ("a = 1", "a = 2", "a = 1"):
        source.write_text(text)
        provenance.code_version.cache_clear()
        versions.append(provenance.code_version())
    provenance.code_version.cache_clear()
    assert versions[0] == versions[2] != versions[1]
