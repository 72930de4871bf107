"""medsora.studies.report: tables of runs that are finished, unfinished or not begun."""

from __future__ import annotations

from medsora.studies.report import SWITCHED_OFF, Run, StudyReport


def report(stage: str, parameters: dict[str, int], runs: list[Run]) -> StudyReport:
    commands = {title: f"medsora {title}" for title in parameters}
    return StudyReport(stage, "8 steps", (0, 1), 4, parameters, runs, commands, "medsora study ablate")


def row(page: str, title: str, table: int = 0) -> list[str]:
    return [line for line in page.splitlines() if line.startswith(f"| {title} |")][table].split(" | ")


def denoising(title: str, seed: int, *errors: float, finished: bool = True) -> Run:
    evaluations = {
        step: {
            "held_out/clip_mse": error,
            "held_out/clip_mse_t50": error / 2,
            "held_out/clip_mse_t250": error,
        }
        for step, error in zip((4, 8), errors, strict=False)
    }
    return Run(title, seed, 8 if finished else None, evaluations, 3.0)


def test_scores_differences_and_the_curve_of_the_denoiser() -> None:
    runs = [
        denoising("as configured", 0, 0.5, 0.30),
        denoising("as configured", 1, 0.7, 0.34),
        denoising("scan=raster", 0, 0.8, 0.40),
        denoising("scan=raster", 1, 0.8, 0.4402),
        denoising("weight=0", 0, 0.9, finished=False),
        Run("weight=0", 1),
    ]
    page = report(
        "train_dit", {"as configured": 1000, "scan=raster": 1200, "weight=0": 1000}, runs
    ).markdown()
    assert "4 of 6 runs are finished: 8 steps each, seeds 0, 1" in page
    assert row(page, "as configured")[1:] == ["1,000", "2 of 2", "3.0", "0.32", "– |"]
    raster = row(page, "scan=raster")
    assert raster[1:5] == ["1,200", "2 of 2", "3.0", "0.4201"]
    assert raster[5] == "+0.1 (+0.099 … +0.1), worse |"
    assert row(page, "weight=0")[1:] == ["1,000", "0 of 2", "–", "not run", "– |"]
    assert page.index("noise error of clips at t = 50 |") < page.index("noise error of clips at t = 250 |")
    assert row(page, "as configured", 2) == ["| as configured", "0.6", "0.32 |"]
    assert row(page, "weight=0", 2) == ["| weight=0", "0.9", "– |"]
    assert page.endswith("medsora as configured\nmedsora scan=raster\nmedsora weight=0\n```\n")


def test_a_page_shows_the_main_scores_with_their_differences() -> None:
    runs = [
        denoising(title, seed, 0.5, error)._replace(
            of_clips={
                "clips/agreement": 0.5,
                "clips/flicker_distance": 1,
                "clips/warping_error_distance": 0.25,
            }
        )
        for title, *errors in (("as configured", 0.30, 0.34), ("scan=raster", 0.40, 0.4402))
        for seed, error in enumerate(errors)
    ]
    study = report("train_dit", {"as configured": 1000, "scan=raster": 1200, "weight=0": 1000}, runs)
    page = "\n".join(study.page())
    assert "8 steps each, 2 seeds (4 of 4 runs finished), 4 held-out clips" in page
    head = "| variant | parameters | noise error of clips | flow error, distance from phantom (held out) | "
    assert head + "label agreement |" in page
    assert row(page, "`as configured`")[1:] == ["1,000", "0.32", "0.25", "0.5 |"]
    assert row(page, "`scan=raster`")[2] == "0.4201 [+0.1 (+0.099 … +0.1), worse]"
    assert row(page, "`weight=0`")[2:] == ["not run", "not run", "not run |"]
    assert "| noise error of clips after | 4 steps | 8 steps |" in page, "the loss against steps"
    of_minutes = study._replace(against_steps=False)
    assert "noise error of clips after" not in "\n".join([*of_minutes.page(), of_minutes.markdown()])
    assert row(page, "scan=raster") == ["| scan=raster", "0.5", "0.4201 |"]
    assert "\nmedsora study ablate\n" in page


def test_the_compensation_switched_off_is_a_row_of_the_vae(tmp_path) -> None:
    def reconstructing(seed: int, psnr: float, base: float) -> Run:
        evaluations = {8: {"held_out/psnr": psnr, "held_out/base_psnr": base}}
        return Run("as configured", seed, 8, evaluations, 1.0, {"vae/polyps_kept": 0.5})

    runs = [reconstructing(0, 31.0, 30.0), reconstructing(1, 33.0, 31.99)]
    found = report("train_vae", {"as configured": 10}, runs)
    cells = row(found.markdown(), SWITCHED_OFF)
    assert cells[1:6] == ["–", "–", "–", "30.99", "-1 (-1.1 … -0.94), worse"]
    assert cells[6] == "not run"
    assert row("\n".join(found.page()), "`as configured`")[-1] == "0.5 |"
    assert row("\n".join(found.page()), f"`{SWITCHED_OFF}`")[-1] == "not run |", "no score of the same clips"
    assert "vae/polyps_kept" not in found.values()["differences"][SWITCHED_OFF]
    found.write(tmp_path)
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == found.markdown()
