"""Decisions: typed questions about a state, each answered with a probability for each option (System One).

questions.py         questions: a choice, a score or yes/no; checks of what users give
decision_format.py   what a model's file states: its kind, the template, the temperatures
labels.py            the tokens that stand for the options
option_layouts.py    lists the models that score options themselves, instead of labels:
scored_options.py      what they share
marked_options.py      "laya": a score at the mark of each option
omni_options.py        "lfm2-d1-omni": the same, with another prompt
pointed_options.py     "kev": the query of the last token, times the key of each option's end
joint_options.py       "clef": one prompt for all questions; joint_scores.py computes its head
prompts.py           state and question → tokens
answers.py           scores → probabilities, confidence, the answer
decider.py           a model's decider: from questions to prompts, from scores to answers
explanation.py       the words that made an option likely: the result
explain.py           computes an explanation
"""
