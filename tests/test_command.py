import signal
import subprocess
import sys

import pytest

from shared.command import run_command
from shared.errors import ConfigError, FormatError, InputError, UserError

PROGRAM = """
import sys, time
from shared.command import run_command
from shared.errors import ConfigError
def fail(arguments):
    "Fail."
    raise ConfigError("lr is 0; more is wanted")
def wait(arguments):
    "Wait."
    print("ready", flush=True)
    time.sleep(600)
def talk(arguments):
    "Talk."
    for number in range(100_000):
        print("line", number)
sys.exit(run_command("demo", {"fail": fail, "wait": wait, "talk": talk}, sys.argv[1:]))
"""


def show(arguments):
    """Print the arguments.

    And no more than that.
    """
    print(*arguments)


def commands(**others):
    return {"show": show, **others}


def raising(error):
    def command(arguments):
        raise error

    return command


def test_the_named_command_gets_the_other_arguments(capsys):
    assert run_command("demo", commands(), ["show", "--steps", "3", "show"]) == 0
    assert capsys.readouterr() == ("--steps 3 show\n", "")


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_the_exit_code_is_the_one_that_the_command_returns(returned, code):
    assert run_command("demo", commands(check=lambda arguments: returned), ["check"]) == code


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_names_every_command_with_its_first_line(capsys, argv):
    assert run_command("demo", commands(undocumented=lambda arguments: None), argv) == 0
    usage = "usage: python -m demo COMMAND [--help]\n\n  show          Print the arguments.\n  undocumented\n"
    assert capsys.readouterr() == (usage, "")


def test_an_unknown_command_is_refused_naming_the_known(capsys):
    assert run_command("demo", commands(stop=show), ["shwo"]) == 2
    assert capsys.readouterr() == ("", "error: unknown command 'shwo': one of show, stop is wanted\n")


@pytest.mark.parametrize("kind", [UserError, ConfigError, InputError, FormatError])
def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(capsys, kind):
    assert run_command("demo", commands(fail=raising(kind("found; wanted: do"))), ["fail"]) == 2
    assert capsys.readouterr() == ("", "error: found; wanted: do\n")


def test_an_interrupt_is_one_line_and_exit_code_130(capsys):
    assert run_command("demo", commands(wait=raising(KeyboardInterrupt())), ["wait"]) == 130
    assert capsys.readouterr() == ("", "interrupted: run the same command again to continue\n")


def test_a_bug_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command("demo", commands(fail=raising(ZeroDivisionError())), ["fail"])


def test_a_program_ends_with_one_line_and_no_traceback():
    ended = subprocess.run([sys.executable, "-c", PROGRAM, "fail"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "error: lr is 0; more is wanted\n")


def test_an_interrupted_program_ends_with_one_line_and_no_traceback():
    command = [sys.executable, "-c", PROGRAM, "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "interrupted: run the same command again to continue\n")


def test_a_reader_that_has_seen_enough_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "talk"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=30) == 141
    process.stderr.close()
