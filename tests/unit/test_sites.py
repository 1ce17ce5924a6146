"""Sites are values: they are listed in depth order, by kind, and can be moved below a prefix."""

from prunus.sites import ChannelSite, LinearSite, Producer, Silent, SublayerSite, branch, grouped_rows, stack


def two_blocks() -> object:
    matrices = [("mlp.up", 12, 8, "mlp.input"), ("mlp.down", 8, 12, "mlp.down.input")]
    return stack("layers", 2, branch("mlp", matrices, count=6, consumer="mlp.down", producers=[Producer("mlp.up", 2)],
                                     silent=[Silent("mlp", "zeros")], norms=["norm"]))


def test_a_stack_repeats_its_branches_and_numbers_them_by_depth() -> None:
    anatomy = two_blocks()
    assert [block.name for block in anatomy.blocks] == ["layers.0", "layers.1"]
    assert [site.name for site in anatomy.sites("linear")] == [
        "layers.0.mlp.up", "layers.0.mlp.down", "layers.1.mlp.up", "layers.1.mlp.down"]
    assert [site.block for site in anatomy.sites()] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_channels_share_the_consumer_s_columns_evenly_and_own_rows_of_the_producers() -> None:
    channels = two_blocks().blocks[1].sites[2]
    assert channels == ChannelSite("layers.1.mlp.channels", 1, 6, "layers.1.mlp.down", 2,
                                   (Producer("layers.1.mlp.up", 2),), 192)


def test_a_branch_is_a_site_of_all_its_weights() -> None:
    assert two_blocks().blocks[0].sites[3] == SublayerSite("layers.0.mlp", 0, 192, "layers.0.mlp.down", (Silent("layers.0.mlp", "zeros"),),
                                                         ("layers.0.norm",))


def test_kinds_select_and_none_means_all() -> None:
    anatomy = two_blocks()
    assert len(anatomy.sites()) == 8
    assert {type(site) for site in anatomy.sites("channel", "sublayer")} == {ChannelSite, SublayerSite}


def test_below_a_prefix_every_path_moves_and_nothing_else_changes() -> None:
    moved = two_blocks().below("model.")
    assert moved.blocks[0].name == "model.layers.0"
    assert moved.blocks[0].sites[0] == LinearSite("model.layers.0.mlp.up", 0, (12, 8), "model.layers.0.mlp.input",
                                                 "model.layers.0.mlp")
    assert moved.blocks[0].sites[2].producers == (Producer("model.layers.0.mlp.up", 2),)
    assert moved.blocks[0].sites[2].consumer == "model.layers.0.mlp.down"
    assert moved.blocks[0].sites[3].output == "model.layers.0.mlp.down"
    assert moved.blocks[0].sites[3].silent == (Silent("model.layers.0.mlp", "zeros"),)
    assert moved.blocks[0].sites[3].norms == ("model.layers.0.norm",)


def test_a_key_value_group_owns_the_rows_of_all_its_queries() -> None:
    assert grouped_rows(queries=8, groups=2, head=16) == (64, 16)
    assert grouped_rows(queries=8, groups=8, head=16) == (16, 16)
