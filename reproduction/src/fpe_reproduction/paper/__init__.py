"""The paper, sentence by sentence."""

from fpe_reproduction.paper.judge import Sentence, by_data, judge, networks, to_frame
from fpe_reproduction.paper.sentences import SENTENCES

__all__ = ["SENTENCES", "Sentence", "by_data", "judge", "networks", "to_frame"]
