"""Which instructions a contrast is asked under."""

from __future__ import annotations

import json

from benchmarks.training_h100.scoring import UNSEEN
from benchmarks.wordings import NESTED, TASKS, asked, wordings
from gircse_rag.evaluation.instructions import SET_INSTRUCTIONS


def test_each_set_is_asked_once_under_each_pair_of_wordings(tmp_path):
    (tmp_path / "tasks.json").write_text(json.dumps({task: {"instruction": f"Of {task}"} for task in TASKS}))
    found = list(asked(tmp_path))
    names = [(name, which) for name, which, _ in found]
    assert len(set(names)) == len(names)
    by_set = {name: {which: said for of, which, said in found if of == name} for name, _ in names}

    assert set(by_set) == {"contrast/dev_aws", *NESTED}
    aws = by_set["contrast/dev_aws"]
    assert aws["training"] == {f"dev/{task}": f"Of {task}" for task in TASKS}
    assert aws["unseen"] == {f"dev/{task}": UNSEEN[task] for task in TASKS}
    assert len({tuple(said.values()) for said in aws.values()}) == len(aws) == len(wordings(tmp_path))
    for name, (kinds, _) in NESTED.items():
        assert by_set[name]["training"] == {}, "those of `gircse eval`, unless it is told others"
        for which in ("near", "unseen"):
            said = by_set[name][which]
            assert set(said) == set(kinds) <= set(SET_INSTRUCTIONS), "else `gircse eval` would not hear them"
            assert len({*said.values(), *(SET_INSTRUCTIONS[kind] for kind in kinds)}) == 4
