"""Precision and recall of the patterns, on sentences whose answer is plain."""

from cs336.filters.labelled import PiiSentence
from cs336.filters.pii_accuracy import pii_scores


def labelled(text: str, *spans: tuple[str, str]) -> PiiSentence:
    return PiiSentence(text, tuple((kind, text.index(part), text.index(part) + len(part)) for kind, part in spans))


def test_hits_misses_and_false_accepts_by_hand():
    scores = {
        score.kind: score
        for score in pii_scores(
            [
                labelled(
                    "ann@x.com calls 283-182-3829", ("EMAIL_ADDRESS", "ann@x.com"), ("PHONE_NUMBER", "283-182-3829")
                ),
                labelled("call 283-182-3829 or 5551234567 at 10", ("PHONE_NUMBER", "283-182-3829")),
                labelled("in Kiel 0431 35 06 90", ("PHONE_NUMBER", "0431 35 06 90")),
                labelled("a21 232 945 1338", ("PHONE_NUMBER", "21 232 945 1338")),
                labelled("id x283-182-3829", ("PHONE_NUMBER", "283-182-3829")),
                labelled("at d80:e4b5::1", ("IP_ADDRESS", "d80:e4b5::1")),
            ]
        )
    }
    phone, email, ip = scores["PHONE_NUMBER"], scores["EMAIL_ADDRESS"], scores["IP_ADDRESS"]
    assert (email.num_labelled, email.num_masked, email.num_found, email.num_right) == (1, 1, 1, 1)
    assert (phone.num_labelled, phone.num_in_scope) == (5, 3)
    assert (phone.num_masked, phone.num_masked_in_scope) == (2, 2)  # a part of a number is no number
    assert (phone.num_found, phone.num_right) == (4, 3)
    assert phone.missed == ("283-182-3829",)
    assert phone.false == ("5551234567",)
    assert set(phone.left_out) == {"0431 35 06 90", "21 232 945 1338"}
    assert (ip.num_labelled, ip.num_in_scope, ip.num_found, ip.left_out) == (1, 0, 0, ("d80:e4b5::1",))
