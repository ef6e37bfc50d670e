from pellucid.errors import InvalidRequest
def refusal(kind, problem):
    from pellucid.sample.grammars.schema import refused
    return refused(kind, problem)
