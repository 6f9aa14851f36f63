"""The file names of NTU RGB+D (setup, camera, performer, replication, action) and the official splits by them.

Rules of the splits: Shahroudy et al. 2016 (NTU RGB+D: cross-subject, cross-view) and Liu et al. 2019 (NTU RGB+D 120:
cross-subject, cross-setup).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from starlab.pipelines.clip import Split

Protocol = Literal["xsub", "xview", "xset"]

XSUB60_TRAIN = frozenset({1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38})
"""The 20 performers who train in cross-subject of NTU RGB+D; the other 20 test."""
XSUB120_TRAIN = XSUB60_TRAIN | (
    {45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89}
    | {91, 92, 93, 94, 95, 97, 98, 100, 103}
)
"""The 53 of NTU RGB+D 120's 106. Performers 1 to 40 are those of NTU RGB+D, so this set serves both."""
XVIEW_TRAIN_CAMERAS = frozenset({2, 3})

_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})", re.ASCII)


@dataclass(frozen=True, slots=True)
class NtuName:
    """The parts of a name such as S001C002P003R002A013, all counted from 1."""

    setup: int
    camera: int
    performer: int
    replication: int
    action: int

    def __str__(self) -> str:
        return f"S{self.setup:03d}C{self.camera:03d}P{self.performer:03d}R{self.replication:03d}A{self.action:03d}"

    def split(self, protocol: Protocol) -> Split:
        """The side of an official split that the clip is on."""
        trains = {
            "xsub": self.performer in XSUB120_TRAIN,
            "xview": self.camera in XVIEW_TRAIN_CAMERAS,
            "xset": self.setup % 2 == 0,
        }
        return "train" if trains[protocol] else "test"


def parse_name(text: str) -> NtuName:
    """The parts of a clip's name.

    Raises:
        ValueError: it is not such a name, e.g. because a number does not have three digits.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no NTU name of the form S001C002P003R002A013")
    return NtuName(*(int(part) for part in found.groups()))


def names_in(text: str) -> frozenset[str]:
    """The clip names on lines of their own, as in the authors' lists of missing skeletons; other lines are prose."""
    lines = (line.strip().removesuffix(".skeleton") for line in text.splitlines())
    return frozenset(line for line in lines if _NAME.fullmatch(line))


NTU120_CLASSES = (
    "A001_drink_water",
    "A002_eat_meal",
    "A003_brush_teeth",
    "A004_brush_hair",
    "A005_drop",
    "A006_pick_up",
    "A007_throw",
    "A008_sit_down",
    "A009_stand_up",
    "A010_clap",
    "A011_read",
    "A012_write",
    "A013_tear_up_paper",
    "A014_put_on_jacket",
    "A015_take_off_jacket",
    "A016_put_on_shoe",
    "A017_take_off_shoe",
    "A018_put_on_glasses",
    "A019_take_off_glasses",
    "A020_put_on_hat",
    "A021_take_off_hat",
    "A022_cheer_up",
    "A023_wave_hand",
    "A024_kick_something",
    "A025_reach_into_pocket",
    "A026_hop",
    "A027_jump_up",
    "A028_phone_call",
    "A029_play_with_phone",
    "A030_type_on_keyboard",
    "A031_point_to_something",
    "A032_take_selfie",
    "A033_check_time",
    "A034_rub_hands",
    "A035_nod_or_bow",
    "A036_shake_head",
    "A037_wipe_face",
    "A038_salute",
    "A039_put_palms_together",
    "A040_cross_hands_in_front",
    "A041_sneeze_or_cough",
    "A042_stagger",
    "A043_fall",
    "A044_headache",
    "A045_chest_pain",
    "A046_back_pain",
    "A047_neck_pain",
    "A048_nausea",
    "A049_fan_self",
    "A050_punch_other",
    "A051_kick_other",
    "A052_push_other",
    "A053_pat_others_back",
    "A054_point_at_other",
    "A055_hug",
    "A056_give_object",
    "A057_touch_others_pocket",
    "A058_shake_hands",
    "A059_walk_towards_each_other",
    "A060_walk_apart",
    "A061_put_on_headphone",
    "A062_take_off_headphone",
    "A063_shoot_at_basket",
    "A064_bounce_ball",
    "A065_tennis_swing",
    "A066_juggle_table_tennis_balls",
    "A067_hush",
    "A068_flick_hair",
    "A069_thumb_up",
    "A070_thumb_down",
    "A071_ok_sign",
    "A072_victory_sign",
    "A073_staple_book",
    "A074_count_money",
    "A075_cut_nails",
    "A076_cut_paper",
    "A077_snap_fingers",
    "A078_open_bottle",
    "A079_sniff",
    "A080_squat_down",
    "A081_toss_coin",
    "A082_fold_paper",
    "A083_ball_up_paper",
    "A084_play_magic_cube",
    "A085_cream_on_face",
    "A086_cream_on_hand_back",
    "A087_put_on_bag",
    "A088_take_off_bag",
    "A089_put_into_bag",
    "A090_take_out_of_bag",
    "A091_open_box",
    "A092_move_heavy_objects",
    "A093_shake_fist",
    "A094_throw_up_cap",
    "A095_hands_up",
    "A096_cross_arms",
    "A097_arm_circles",
    "A098_arm_swings",
    "A099_run_on_the_spot",
    "A100_butt_kicks",
    "A101_cross_toe_touch",
    "A102_side_kick",
    "A103_yawn",
    "A104_stretch",
    "A105_blow_nose",
    "A106_hit_other_with_object",
    "A107_wield_knife_at_other",
    "A108_knock_over_other",
    "A109_grab_others_stuff",
    "A110_shoot_at_other",
    "A111_step_on_foot",
    "A112_high_five",
    "A113_cheers_and_drink",
    "A114_carry_together",
    "A115_photograph_other",
    "A116_follow_other",
    "A117_whisper_in_ear",
    "A118_exchange_things",
    "A119_support_somebody",
    "A120_rock_paper_scissors",
)
"""The authors' 120 actions, shortened, with their numbers."""
NTU60_CLASSES = NTU120_CLASSES[:60]
NTU60_SETUPS, NTU120_SETUPS = range(1, 18), range(1, 33)
"""Setup numbers of the two data sets; the larger holds the smaller."""
