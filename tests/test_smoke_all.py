import pytest
import trimtab as tt
from tests.tiny import *


@pytest.mark.parametrize("family", FAMILIES)
def test_all(family):
    m, tok = tiny_model(family), tiny_tokenizer()
    q = tiny_questions()
    a = tt.capture_heads(m, tok, q.statements())
    p = tt.probes.fit_logistic(a)
    s = tt.steer.fit_shift(a, p, top_k=4)
    s = tt.steer.choose_strength(
        m, tok, q, s, alphas=(0.5, 1), kl_budget=50, texts=["some text here", "another text is here"]
    )
    t = tt.compare.table(
        m, tok, q, [tt.NoEdit(), s, tt.Prompted((("a", "b."),))], max_new_tokens=4, texts=["some text here"]
    )
    print(t.to_markdown())
