"""Schedules, compared with PyTorch's over a few hundred steps."""

import pytest

from tinygrad_cnn.optim import constant, cosine, multistep, one_cycle, step, warm_up

PAIRS = {
    "constant": (constant(0.5), lambda s, o: s.ConstantLR(o, factor=1)),
    "step": (step(0.5, 30), lambda s, o: s.StepLR(o, 30)),
    "step-gamma": (step(0.5, 7, 0.9), lambda s, o: s.StepLR(o, 7, 0.9)),
    "multistep": (multistep(0.5, [200, 50]), lambda s, o: s.MultiStepLR(o, [50, 200])),
    "multistep-twice": (multistep(0.5, [9, 9], 0.3), lambda s, o: s.MultiStepLR(o, [9, 9], 0.3)),
    "cosine": (cosine(0.5, 300), lambda s, o: s.CosineAnnealingLR(o, 300)),
    "cosine-floor": (cosine(0.5, 300, 0.1), lambda s, o: s.CosineAnnealingLR(o, 300, 0.1)),
    "one_cycle": (one_cycle(0.5, 301), lambda s, o: s.OneCycleLR(o, 0.5, 301)),
    "one_cycle-linear": (
        one_cycle(0.5, 301, anneal_strategy="linear"),
        lambda s, o: s.OneCycleLR(o, 0.5, 301, anneal_strategy="linear"),
    ),
    "one_cycle-factors": (
        one_cycle(0.5, 301, pct_start=0.07, div_factor=3, final_div_factor=7),
        lambda s, o: s.OneCycleLR(o, 0.5, 301, pct_start=0.07, div_factor=3, final_div_factor=7),
    ),
    "warm_up": (
        warm_up(constant(0.5), 40, 0.1),
        lambda s, o: s.LinearLR(o, 0.2, total_iters=40),
    ),
    "warm_up-constant": (
        warm_up(constant(0.5), 40, 0.1, shape="constant"),
        lambda s, o: s.ConstantLR(o, 0.2, total_iters=40),
    ),
    "warm_up-multistep": (
        warm_up(multistep(0.5, [90]), 40, 0.1),
        lambda s, o: s.ChainedScheduler([s.LinearLR(o, 0.2, 1, 40), s.MultiStepLR(o, [90])], o),
    ),
}


@pytest.mark.parametrize(("schedule", "make"), PAIRS.values(), ids=PAIRS)
def test_schedule_equals_pytorchs(schedule, make):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5, momentum=0.9)
    peer = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(300):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        peer.step()
    assert [schedule(i) for i in range(300)] == pytest.approx(rates, rel=1e-11, abs=1e-15)


def test_cosine_stays_at_its_floor():
    assert cosine(0.5, 10, 0.1)(1000) == cosine(0.5, 10, 0.1)(10) == pytest.approx(0.1)


@pytest.mark.parametrize("pct_start", [0.1, 0.3, 0.95])
def test_one_cycle_peaks_and_stays_at_its_end(pct_start):
    schedule = one_cycle(1.0, 10, pct_start=pct_start, anneal_strategy="linear")
    assert max(schedule(i / 100) for i in range(1000)) == pytest.approx(1, abs=0.01)
    assert schedule(9) == schedule(1000) == pytest.approx(1 / 25 / 1e4)


def test_one_step_is_enough():
    assert cosine(1.0, 1)(0) == 1
    assert one_cycle(1.0, 1)(0) == pytest.approx(1 / 25 / 1e4)


def test_warm_up_aims_where_the_schedule_will_be():
    """The ramp is straight and meets the schedule, whose clock has run on."""
    schedule = warm_up(cosine(1.0, 100), 50)
    assert [schedule(i) for i in (0, 25, 50)] == pytest.approx([0, 0.25, 0.5])
    assert schedule(75) == cosine(1.0, 100)(75)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: step(0.1, 0), "step: every is 0; expected a number of steps, at least 1"),
        (lambda: cosine(0.1, -5), "cosine: steps is -5; expected a number of steps"),
        (lambda: one_cycle(0.1, 0), "one_cycle: steps is 0; expected"),
        (lambda: one_cycle(0.1, 9, pct_start=1), "pct_start is 1; expected 0 to below 1"),
        (
            lambda: one_cycle(0.1, 9, anneal_strategy="cosine"),
            "one_cycle: anneal_strategy is 'cosine'; expected 'cos' or 'linear'",
        ),
        (lambda: warm_up(constant(1), 0), "warm_up: steps is 0; expected"),
        (lambda: warm_up(constant(1), 9, shape="step"), "expected 'linear' or 'constant'"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
