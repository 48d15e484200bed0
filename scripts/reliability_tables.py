"""The tables of docs/reliability.md, from what the tests counted (results/reliability/tests.json), fuzzing and soaking.

Which test stands for which row is said here; how many cases it went through, the tests say themselves:

    PETSEG_TRIED=results/reliability/tests.json python -m pytest tests
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from petseg.errors import PetsegError

ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "Killed (SIGKILL)": {
        "training, at random moments and before each file operation: resumed to the bit": (
            "test_kills.py::test_a_killed_training_resumes_to_the_bit",
        ),
        "training, again and again in one folder": ("test_kills.py::test_a_run_killed_again_and_again_ends_the_same",),
        "evaluation and report": ("test_kills.py::test_a_killed_evaluation_or_report_is_made_again",),
        "a comparison": ("test_kills.py::test_a_killed_comparison_goes_on",),
        "a study": ("test_study.py::test_killed_twice_it_comes_to_the_same_manifest_and_results",),
        "preparing the cache": (
            "test_kills.py::test_a_killed_preparation_is_done_again",
            "test_cache.py::test_a_killed_process_leaves_nothing_under_the_name",
        ),
        "a download": ("test_kills.py::test_a_killed_download_goes_on_where_it_was",),
        "unpacking": ("test_archives.py::test_killed_extraction_leaves_no_target",),
        "a folder prediction, then `--resume`": ("test_kills.py::test_a_killed_folder_prediction_resumes",),
    },
    "Disks": {
        "a disk that fills during training: no epoch lost, then resumed to the bit": (
            "test_disks.py::test_a_disk_that_fills_during_training_costs_no_epoch",
        ),
        "a disk too small for the cache": ("test_disks.py::test_a_disk_too_small_for_the_cache",),
        "a full disk, every command that writes": ("test_disks.py::test_a_full_disk_is_one_line_for_every_command",),
        "a read-only disk, every command that writes": (
            "test_disks.py::test_a_read_only_disk_is_one_line_for_every_command",
        ),
    },
    "Downloads": {
        "breaks off, or its part goes on at the mirror": (
            "test_archives.py::test_broken_transfer_resumes_where_it_broke_off",
            "test_archives.py::test_mirror_continues_the_same_part",
            "test_archives.py::test_part_of_an_earlier_call_is_continued",
            "test_archives.py::test_break_at_every_try_is_told_and_keeps_the_part",
        ),
        "stalls, trickles or does not answer: given up, retries counted": (
            "test_archives.py::test_host_that_stalls_is_given_up_and_its_part_goes_on_elsewhere",
            "test_archives.py::test_host_that_does_not_answer",
        ),
        "lies about its length, ignores Range or answers another": (
            "test_archives.py::test_server_that_ignores_range_starts_anew",
            "test_archives.py::test_bad_source_does_not_cost_the_part",
            "test_archives.py::test_wrong_content_range_is_told",
        ),
        "404, 429, 500, a flipped bit, an HTML page, plain http: never taken, the mirror asked": (
            "test_archives.py::test_bad_source_goes_on_to_the_mirror",
            "test_archives.py::test_all_sources_fail",
        ),
    },
    "Archives": {
        "traversal, absolute paths, links, devices, control characters in names": (
            "test_archives.py::test_hostile_member_is_refused",
            "test_archives.py::test_member_below_a_file_is_refused",
        ),
        "bombs: members and bytes counted over all archives": (
            "test_archives.py::test_too_many_members",
            "test_archives.py::test_too_many_bytes",
            "test_archives.py::test_bytes_are_counted_over_all_archives",
        ),
        "cut off anywhere, damaged, no archive": (
            "test_archives.py::test_archive_cut_off_anywhere_is_refused",
            "test_archives.py::test_damaged_bytes_are_refused",
            "test_archives.py::test_damaged_header_is_refused",
            "test_archives.py::test_not_an_archive",
        ),
    },
    "Two at once": {
        "preparing one cache": (
            "test_cache.py::test_two_processes_at_once_make_one_cache",
            "test_cache.py::test_the_second_process_waits_for_the_first",
        ),
        "trainings or comparisons in one folder": (
            "test_damage.py::test_a_second_training_or_comparison_in_one_folder_is_refused",
            "test_damage.py::test_of_trainings_that_start_together_one_trains",
        ),
        "`petseg data get`": ("test_damage.py::test_a_second_download_waits_for_the_first",),
    },
    "Damaged state": {
        "checkpoint or metrics: said, gone on from the epoch before": (
            "test_damage.py::test_a_damaged_state_is_said_and_the_epoch_before_taken",
        ),
        "what cannot be recovered: said, nothing touched": (
            "test_damage.py::test_what_cannot_be_recovered_is_said_and_left_as_it_is",
            "test_damage.py::test_a_config_of_another_version_is_said",
            "test_train.py::test_weights_of_another_model_are_refused",
        ),
        "an evaluation: scored again": ("test_damage.py::test_a_damaged_evaluation_is_scored_again",),
        "a cache: made again": (
            "test_cache.py::test_a_damaged_cache_is_said_and_made_again",
            "test_cache.py::test_a_cache_without_an_array_is_made_again",
        ),
    },
    "Hostile files": {
        "mutated pictures, recipes, runs, weights, models, requests": (
            "test_fuzz.py::test_a_mutated_file_is_read_or_refused",
        ),
        "formats that run programs": ("test_fuzz.py::test_formats_that_nobody_photographs_in_are_not_opened",),
        "pictures larger than what is read": (
            "test_fuzz.py::test_a_trimap_larger_than_what_is_read_is_not_decoded",
            "test_photos.py::test_a_decompression_bomb_is_refused_before_it_is_decoded",
            "test_oxford_pets.py::test_a_picture_that_claims_too_many_pixels",
        ),
        "models whose card or network lies, or that name other files": (
            "test_fuzz.py::test_a_card_that_lies_is_refused_before_a_photo_is_read",
            "test_fuzz.py::test_a_network_that_gives_something_else_is_refused",
            "test_fuzz.py::test_a_model_reads_no_file_beside_itself",
        ),
        "nothing is unpickled or executed": ("test_api.py::test_nothing_is_unpickled_or_executed",),
        "a script in a picture's name, in the report and its plots": (
            "test_report.py::test_values_are_escaped",
            "test_report.py::test_a_picture_named_with_a_script_tag_stays_text",
        ),
    },
    "The server": {
        "slow clients": ("test_serve_hostile.py::test_a_slow_client_is_closed_and_others_are_answered",),
        "more connections than files": (
            "test_serve_hostile.py::test_more_connections_than_files_leave_room_for_the_next",
        ),
        "endless headers and addresses, uploads over the limit": (
            "test_serve_hostile.py::test_a_head_without_end_is_refused_and_not_kept",
            "test_serve_hostile.py::test_uploads_over_the_limit_are_not_kept",
        ),
        "clients that do not read": (
            "test_serve_hostile.py::test_a_client_that_does_not_read_its_answer_holds_nobody_up",
        ),
        "paths that lead out": ("test_serve_hostile.py::test_no_path_leads_out_of_the_page",),
        "multipart tricks": ("test_serve_hostile.py::test_a_malformed_form_is_answered",),
        "malformed requests": ("test_serve_hostile.py::test_a_malformed_request_is_refused_or_dropped",),
        "requests made from its OpenAPI document": ("test_serve.py::test_the_api_keeps_its_openapi_document",),
    },
    "Numbers": {
        "metrics equal scikit-learn's on random masks": (
            "test_metrics.py::test_scores_agree_with_scikit_learn",
            "test_evaluate.py::test_scores_equal_scikit_learn_on_all_pixels_at_own_size",
        ),
        "batch size, order and threads change no score": (
            "test_evaluate.py::test_scores_do_not_depend_on_batch_size_or_order",
            "test_numbers.py::test_scores_do_not_depend_on_threads",
        ),
        "neighbours, threads and folders change no prediction": (
            "test_numbers.py::test_a_prediction_depends_on_its_photo_alone",
        ),
        "a flipped photo gives a flipped mask": (
            "test_numbers.py::test_a_flipped_photo_gives_a_flipped_mask",
            "test_numbers.py::test_a_network_made_symmetrical_is_so",
        ),
        "mixed tasks are refused": ("test_damage.py::test_labels_of_another_task_are_refused",),
        "a golden run of 20 steps": (
            "test_numbers.py::test_a_golden_run_gives_its_stored_losses",
            "test_numbers.py::test_the_golden_run_would_tell",
        ),
    },
}
"""Area -> what was tried -> the tests that tried it."""

FUZZED = {
    "image": "a photo, as `petseg predict` and the server read it",
    "trimap": "a trimap and an image of the data set",
    "recipe": "a recipe, and `--set`",
    "run": "config, metrics, evaluation and comparison of a run",
    "checkpoint": "weights and checkpoints (safetensors)",
    "onnx": "a model file, and a photo through it",
    "card": "a model's card, its network sound",
    "body": "the body of a request, with several content types and queries",
}


def named_tests() -> set[str]:
    """Returns every test that a row names."""
    return {test for rows in ROWS.values() for tests in rows.values() for test in tests}


def reliability_tables(results: Path) -> dict[str, str]:
    """Returns the tables by their markers' names.

    Raises:
        PetsegError: a row's test has no count.
    """
    folder = results / "reliability"
    return {
        "faults": _faults(_read(folder / "tests.json")),
        "fuzz": _fuzz(_read(folder / "fuzz.json")),
        "soak": _soak(_read(folder / "soak.json")),
    }


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise PetsegError(f"{path} does not exist; wanted what the tests counted: see scripts/reliability_tables.py")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _faults(counted: dict[str, Any]) -> str:
    cases = counted["cases"]
    missing = sorted(named_tests() - cases.keys())
    if missing:
        raise PetsegError(f"no counts of {', '.join(missing)}; run the tests with PETSEG_TRIED")
    lines = ["| | Tried | Cases | Test |", "| --- | --- | ---: | --- |"]
    for area, rows in ROWS.items():
        for what, tests in rows.items():
            links = ", ".join(f"[`{name}`](../tests/{file})" for file, name in (test.split("::") for test in tests))
            lines.append(f"| {area} | {what} | {sum(cases[test] for test in tests):,} | {links} |")
            area = ""
    total = sum(cases[test] for test in named_tests())
    told = f"{total:,} cases in all; counted on {counted['platform']}, Python {counted['python']}"
    return "\n".join([*lines, "", f"{told}, commit `{counted['commit']}`."])


def _fuzz(fuzzed: dict[str, Any]) -> str:
    lines = [
        "| Reader | Cases | Read, not refused | Peak memory | Findings open |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, what in FUZZED.items():
        found = fuzzed["targets"][name]
        lines.append(
            f"| `{name}`: {what} | {found['cases']:,} | {found['read']:,} | {found['peak_megabytes']} MB | "
            f"{len(found['findings'])} |"
        )
    environment = fuzzed["environment"]
    versions = ", ".join(f"{name} {environment[name]}" for name in ("atheris", "pillow", "safetensors", "onnxruntime"))
    limits = f"at most {fuzzed['seconds_a_case']} s a case and {fuzzed['megabytes']:,} MB a process"
    return "\n".join([*lines, "", f"Limits: {limits}; {versions}; commit `{environment['commit']}`."])


def _soak(soaked: dict[str, Any]) -> str:
    lines = [
        "| | Minutes | Done | Memory | Growth | Open files | Growth | Threads | Growth |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, unit in (("training", "epochs"), ("serving", "requests")):
        found, last = soaked[name], soaked[name]["samples"][-1]
        growth = found["growth"]
        lines.append(
            f"| {name} | {found['minutes']:g} | {found['done']:,} {unit} | {last['megabytes']:.0f} MB | "
            f"{growth['megabytes']:+.1f} MB | {last['files']} | {growth['files']:+g} | {last['threads']} | "
            f"{growth['threads']:+g} |"
        )
    return "\n".join([*lines, "", f"Commit `{soaked['environment']['commit']}`."])
