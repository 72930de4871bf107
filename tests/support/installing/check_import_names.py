"""Assert that every import name leads where it should; run inside an installation, as script, module or test.

MEDSORA_TEST_CASE is JSON. `foreign`: another `kernels` is installed; `wheel`: the old names are not ours;
`clip`: import transformers' CLIP "first", "last" or not at all; `model`: a pipeline to sample into `out`.
"""

from __future__ import annotations

import json
import os
import pickle
import sys

OLD_NAMES = ("kernels", "flow_prior", "vae")


def test_import_names() -> None:
    case = json.loads(os.environ["MEDSORA_TEST_CASE"])
    if case["clip"] == "first":
        _load_clip()
    _load_medsora()
    if case["clip"] == "last":
        _load_clip()
    _check_names(case["foreign"], case["wheel"])
    if case["model"]:
        _check_commands(case["model"], case["out"])
    print("import names: fine")


def _load_clip() -> None:
    from transformers import CLIPModel

    assert CLIPModel.__name__ == "CLIPModel"


def _load_medsora() -> None:
    from medsora.kernels import mamba2_scan
    from medsora.vae import check_video_shape

    assert mamba2_scan.__module__ == "medsora.kernels.dispatch"
    assert check_video_shape.__module__ == "medsora.vae.shapes"


def _check_names(foreign: bool, wheel: bool) -> None:
    import medsora.kernels.reference
    import medsora.vae.shapes

    if foreign:
        import kernels
        import kernels.layer

        assert kernels.FOREIGN
        assert kernels is not medsora.kernels
    if wheel:
        return
    import vae
    import vae.shapes

    assert vae is medsora.vae
    assert vae.shapes is sys.modules["vae.shapes"] is medsora.vae.shapes
    assert pickle.loads(b"cvae.shapes\ncheck_video_shape\n.") is medsora.vae.check_video_shape
    if not foreign:
        import kernels.reference

        assert kernels is medsora.kernels
        assert kernels.reference is medsora.kernels.reference
    old = [name for name in sys.modules if name.split(".")[0] in OLD_NAMES[foreign:]]
    assert all(sys.modules[name] is sys.modules[f"medsora.{name}"] for name in old)


def _check_commands(model: str, out: str) -> None:
    from medsora.__main__ import COMMANDS, main

    for command in ([], *([name] for name in (*COMMANDS, "new", "export"))):
        sys.argv = ["medsora", *command, "--help"]
        status = None
        try:
            main()
        except SystemExit as end:
            status = end.code
        assert status == 0, command
    size = ("--num-videos", "1", "--steps", "2", "--frames", "1", "--format", "frames")
    sys.argv = ["medsora", "sample", "--model", model, "--out", out, *size]
    main()
    assert any(os.scandir(out))


if __name__ == "__main__":
    test_import_names()
