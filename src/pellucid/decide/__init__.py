"""Decisions: typed questions about a state, each answered with a probability for each option (System One).

questions.py         questions: a choice, a score or yes/no; checks of what users give
decision_format.py   what a model's file states: its kind, the template, the temperatures
labels.py            the tokens that stand for the options
marked_options.py    prompts of models that score each option at a mark
prompts.py           state and question → tokens
answers.py           scores → probabilities, confidence, the answer
decider.py           a model's decider: from questions to prompts, from scores to answers
explanation.py       the words that made an option likely: the result
explain.py           computes an explanation
"""
