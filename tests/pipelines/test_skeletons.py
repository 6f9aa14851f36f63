import pytest

from starlab.pipelines.skeletons import NTU, PENN_ACTION, Skeleton

SKELETONS = pytest.mark.parametrize("skeleton", [PENN_ACTION, NTU], ids=lambda skeleton: skeleton.name)


@SKELETONS
def test_mirrored_joints_have_the_same_name_on_the_other_side(skeleton):
    swap = {"left": "right", "right": "left"}
    for name, partner in zip(skeleton.joints, skeleton.mirror, strict=True):
        side, _, rest = name.partition("_")
        assert skeleton.joints[partner] == (f"{swap[side]}_{rest}" if side in swap else name)


@SKELETONS
def test_the_bones_are_symmetric_and_reach_every_joint(skeleton):
    bones = {frozenset(bone) for bone in skeleton.bones}
    assert {frozenset(skeleton.mirror[joint] for joint in bone) for bone in bones} == bones
    reached = {0}
    for _ in skeleton.joints:
        reached |= {joint for bone in bones if bone & reached for joint in bone}
    assert reached == set(range(len(skeleton.joints)))


def test_a_mirror_that_does_not_pair_the_joints_is_refused():
    with pytest.raises(ValueError, match="mirror of skeleton 'odd'"):
        Skeleton(name="odd", joints=("a", "b", "c"), mirror=(1, 2, 0), bones=())
    with pytest.raises(ValueError, match="bones of skeleton 'odd'"):
        Skeleton(name="odd", joints=("a", "b"), mirror=(1, 0), bones=((0, 2),))
