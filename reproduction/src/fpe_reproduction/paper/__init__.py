"""The paper, sentence by sentence."""

from fpe_reproduction.paper.judge import Sentence, judge, networks, to_frame
from fpe_reproduction.paper.sentences import SENTENCES

__all__ = ["SENTENCES", "Sentence", "judge", "networks", "to_frame"]
