import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_code_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict = {}
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out
    assert printed.count("Flows against GradientDescent") == 3
    assert (tmp_path / "results/valley.png").stat().st_size > 10_000
    assert (tmp_path / "results/valley/comparison.safetensors").exists()
    assert names["path"].shape == (3, 2)
