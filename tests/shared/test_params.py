from shared.params import ParamStore, Policy


def test_the_newest_version_is_held_and_older_ones_never_replace_it() -> None:
    store = ParamStore()
    assert store.newest() is None
    for version in (0, 2, 1, 2):
        store.publish(Policy(version, f"params of {version}, attempt"))
    newest = store.newest()
    assert newest == Policy(2, "params of 2, attempt")


def test_only_newer_policies_are_returned() -> None:
    store = ParamStore()
    store.publish(Policy(3, "x"))
    assert store.newest(above=2) == Policy(3, "x")
    assert store.newest(above=3) is None
    assert store.newest(above=4) is None
