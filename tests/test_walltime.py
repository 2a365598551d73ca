"""When a job ends, in the words of users and batch systems."""

import time
from datetime import datetime

import pytest

from shared.duration import is_duration
from shared.errors import ConfigError, UserError
from train.walltime import fixed, job_end, parse_deadline, parse_qstat, parse_scontrol

SCONTROL = """JobId=81723 JobName=pretrain
   UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   RunTime=00:03:11 TimeLimit=08:00:00 TimeMin=N/A
   SubmitTime=2026-11-26T01:00:00 EligibleTime=2026-11-26T01:00:00
   StartTime=2026-11-26T01:00:00 EndTime=2026-11-26T09:00:00 Deadline=N/A
"""
QSTAT = """Job Id: 12.server
    Job_Name = pretrain
    Resource_List.select = 2:ncpus=8:mpiprocs=2:host=a-host-with-a-long-name-in-this-l
\tist
    Resource_List.walltime = 08:00:00
    stime = Thu Nov 26 01:00:00 2026
    etime = Thu Nov 26 00:30:00 2026
    resources_used.walltime = 00:03:11
"""
END_S = datetime(2026, 11, 26, 9).timestamp()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (SCONTROL, END_S),
        (SCONTROL.replace("2026-11-26T09:00:00", "Unknown"), None),
        (SCONTROL.replace("2026-11-26T09:00:00", "NONE"), None),
        (SCONTROL.replace("2026-11-26T09:00:00", "N/A"), None),
    ],
    ids=["limit", "unknown", "none", "not-applicable"],
)
def test_scontrol_tells_the_end(text, wanted):
    assert parse_scontrol(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (QSTAT, END_S),
        (QSTAT.replace("stime =", "start_time ="), END_S),  # Torque
        (QSTAT.replace("    stime = Thu Nov 26 01:00:00 2026\n", ""), END_S - 1800),  # etime, the earliest it could be
        (QSTAT.replace("= 08:00:00", "= 100:00:00"), END_S + 92 * 3600),
        (QSTAT.replace("= 08:00:00", "= 08:0\n\t0:00"), END_S),  # a long value goes on in the next line
        (QSTAT.replace("Resource_List.walltime", "Resource_List.ncpus"), None),
        (QSTAT.replace("= 08:00:00", "= unlimited"), None),
    ],
    ids=["openpbs", "torque", "etime", "days", "folded", "no-limit", "unlimited"],
)
def test_qstat_tells_start_and_walltime(text, wanted):
    assert parse_qstat(text) == wanted


@pytest.mark.parametrize(
    ("parse", "message"),
    [
        (parse_scontrol, r"^`scontrol show job` says no EndTime of the job: no deadline is known; give --deadline$"),
        (parse_qstat, r"^`qstat -f` says no stime of the job: no deadline is known; give --deadline$"),
    ],
)
def test_an_answer_without_an_end_is_told(parse, message):
    with pytest.raises(UserError, match=message):
        parse("    Resource_List.walltime = 08:00:00\n")


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("8:00:00", True), ("1-00:00:00", True), ("90", False), ("8:00", False), ("2026-11-30T18:00:00", False)],
)
def test_a_duration_has_hours_minutes_and_seconds(text, is_one):
    assert is_duration(text) == is_one


@pytest.mark.parametrize("text", ["", "90", "8:00", "2026-11-30", "18:00:00Z", "tomorrow", "2026-13-30T18:00:00"])
def test_what_is_no_deadline_is_refused(text):
    with pytest.raises(ConfigError, match=r" is not a time: 2026-11-30T18:00:00 or hours:minutes:seconds from now is"):
        parse_deadline(text, 0.0)


def test_a_fixed_deadline_is_the_same_moment_later():
    assert parse_deadline(fixed("8:00:00", 1000.0), 5000.0) == 29_800.0
    zoned = "2026-11-30T18:00:00+02:00"
    assert parse_deadline(fixed(zoned, 1000.0), 0.0) == datetime.fromisoformat(zoned).timestamp()


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Stand-ins for the commands of a batch system; each says what it was asked."""

    def put(name, text, exit_code=0):
        answer, path = tmp_path / f"{name}.txt", tmp_path / name
        answer.write_text(text)
        path.write_text(
            f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n/bin/cat {answer} >&{2 if exit_code else 1}\nexit {exit_code}\n'
        )
        path.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    put.asked = lambda: (tmp_path / "asked").read_text().split()
    return put


def test_slurm_is_asked_for_its_job(commands):
    commands("scontrol", SCONTROL)
    end = job_end(None, {"SLURM_JOB_ID": "81723"})
    assert (end.at_s, end.source) == (END_S, "scontrol show job")
    assert str(end) == "2026-11-26 09:00:00 (scontrol show job)"
    assert commands.asked() == ["show", "job", "81723"]


def test_pbs_is_asked_for_its_job(commands):
    commands("qstat", QSTAT)
    end = job_end(None, {"PBS_JOBID": "12.server"})
    assert (end.at_s, end.source) == (END_S, "qstat -f")
    assert commands.asked() == ["-f", "12.server"]


@pytest.mark.parametrize("said", ["Unknown", "nan", "9" * 400])
def test_an_end_in_the_environment_that_is_no_time_is_told(said):
    with pytest.raises(
        UserError, match=r"^SLURM_JOB_END_TIME does not say when the job ends \(.*\): none is known; give"
    ):
        job_end(None, {"SLURM_JOB_END_TIME": said})


@pytest.mark.parametrize(
    ("name", "variable", "text"),
    [
        ("scontrol", "SLURM_JOB_ID", SCONTROL.replace("EndTime=2026-11-26T09:00:00", "EndTime=tomorrow")),
        ("qstat", "PBS_JOBID", QSTAT.replace("stime = Thu Nov", "stime = Do Nov")),
        ("qstat", "PBS_JOBID", QSTAT.replace("= 08:00:00", "= long")),
        ("qstat", "PBS_JOBID", QSTAT.replace("= 08:00:00", f"= {'9' * 30}:00:00")),
    ],
)
def test_an_answer_that_is_not_understood_is_told(commands, name, variable, text):
    commands(name, text)
    with pytest.raises(
        UserError, match=rf"^{name} .*does not say when the job ends \(.+\): none is known; give --deadline"
    ):
        job_end(None, {variable: "12"})


def test_a_batch_system_is_asked_in_english(commands, tmp_path):
    commands("scontrol", SCONTROL)
    path = tmp_path / "scontrol"
    path.write_text(path.read_text().replace("#!/bin/sh\n", f'#!/bin/sh\necho "$LC_ALL" > {tmp_path}/language\n'))
    job_end(None, {"SLURM_JOB_ID": "81723"})
    assert (tmp_path / "language").read_text() == "C\n"


def test_a_job_without_a_limit_and_no_job_have_no_end(commands):
    commands("qstat", QSTAT.replace("Resource_List.walltime", "Resource_List.ncpus"))
    assert job_end(None, {"PBS_JOBID": "12.server"}) is None
    assert job_end(None, {}) is None


def test_what_the_user_says_comes_before_what_slurm_says_in_the_environment_before_what_it_answers(commands):
    commands("scontrol", SCONTROL)
    environment = {"SLURM_JOB_ID": "81723", "SLURM_JOB_END_TIME": "1764000000"}
    assert job_end(None, environment).at_s == 1764000000
    before = time.time()
    end = job_end("8:00:00", environment)
    assert before <= end.at_s - 8 * 3600 <= time.time()
    assert end.source == "--deadline"


def test_a_batch_system_that_fails_is_told_with_its_last_words(commands, tmp_path):
    commands("qstat", "connecting\nqstat: Unknown Job Id 12.server\n", exit_code=153)
    message = r"^`qstat -f 12.server` does not say when the job ends \(qstat: Unknown Job Id 12.server\): none is known"
    with pytest.raises(UserError, match=message):
        job_end(None, {"PBS_JOBID": "12.server"})
    message = (
        r"^`scontrol show job 5` does not say when the job ends \(\[Errno 2\] No such file .*\): none is known; gi"
    )
    with pytest.raises(UserError, match=message):
        job_end(None, {"SLURM_JOB_ID": "5"})
