import multiprocessing
import resource
import signal

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import metadata

from valle.utils import events
from valle.utils.events import EventWriter, read_scalars


def scalars(folder) -> list[float]:
    found = EventAccumulator(str(folder)).Reload()
    return [event.step for event in found.Scalars("loss")]


def test_what_is_added_is_in_the_file(tmp_path):
    writer = EventWriter(tmp_path)
    for step in range(3):
        writer.add_scalar("loss", 1.0, step)
    writer.close()
    assert scalars(tmp_path) == [0, 1, 2]


def write_on_a_full_disk(folder, log) -> None:
    """The first 300 steps where a file may not grow, the others where it may."""
    events.RETRY_SEC = 0.0
    messages: list[str] = []
    for level in ("error", "warning"):
        setattr(events.logging, level, messages.append)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = EventWriter(folder)
    writer.add_scalar("loss", 1.0, 0)
    writer.flush()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    for step in range(1, 300):
        writer.add_scalar("loss", 1.0, step)
        writer.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for step in range(300, 310):
        writer.add_scalar("loss", 1.0, step)
    writer.close()
    log.write_text("\n".join(messages))


def test_a_full_disk_costs_values_and_not_the_run(tmp_path):
    log = tmp_path / "log"
    process = multiprocessing.get_context("spawn").Process(
        target=write_on_a_full_disk, args=(tmp_path / "events", log)
    )
    process.start()
    process.join(120)
    assert process.exitcode == 0
    found = scalars(tmp_path / "events")
    assert found[0] == 0
    assert found[-9:] == list(range(301, 310))
    first, *_, last = log.read_text().splitlines()
    assert "goes on without tensorboard" in first
    assert "works again" in last


def plugin(folder) -> dict[str, bytes]:
    return EventAccumulator(str(folder)).Reload().PluginTagToContent("hparams")


def test_hparams_are_entered_once_and_in_the_run_itself(tmp_path):
    writer = EventWriter(tmp_path)
    writer.add_hparams({"rate": 0.5, "name": "a", "compile": False, "left": None}, ["best/loss"])
    writer.add_hparams({"rate": 0.7}, [])
    writer.flush()
    start = plugin(tmp_path)[metadata.SESSION_START_INFO_TAG]
    found = metadata.parse_session_start_info_plugin_data(start).hparams
    assert {name: v.number_value or v.string_value for name, v in found.items()} == {
        "rate": 0.5,
        "name": "a",
        "compile": "false",
    }
    assert metadata.SESSION_END_INFO_TAG not in plugin(tmp_path)
    writer.end_hparams()
    writer.close()
    assert metadata.SESSION_END_INFO_TAG in plugin(tmp_path)
    (file,) = tmp_path.iterdir()
    assert sum("_hparams_" in str(event) for event in EventFileLoader(str(file)).Load()) == 3


def test_a_later_run_replaces_what_it_went_through_again(tmp_path):
    for first, last, value in ((0, 5, 1.0), (3, 4, 2.0)):
        writer = EventWriter(tmp_path)
        for step in range(first, last):
            writer.add_scalar("loss", value, step)
        writer.close()
    assert read_scalars(tmp_path) == {"loss": [(0, 1), (1, 1), (2, 1), (3, 2)]}


def test_where_nothing_was_written_there_is_nothing_to_read(tmp_path):
    assert read_scalars(tmp_path / "none") == {}
