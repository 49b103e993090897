"""Twenty-one sentences, three a class, that the default checkpoint's words are asked about.

They were written down, and committed, before any branch of it was trained; none is from a corpus. They are a check of
sense and not a test set: whoever wrote them had the classes in mind.
"""

SENTENCES = {
    "neutral": (
        "The meeting starts at nine in room four.",
        "I put the keys on the kitchen table.",
        "The bus to the station leaves every ten minutes.",
    ),
    "happy": (
        "This is the best day of my life!",
        "I got the job, I am so happy!",
        "We had a wonderful time with you, thank you so much!",
    ),
    "sad": (
        "I miss her so much, nothing is the same without her.",
        "I failed again and I just want to cry.",
        "He died last night and I never said goodbye.",
    ),
    "angry": (
        "How dare you lie to me like that!",
        "Get out of my house right now!",
        "I am sick of you always ignoring what I say.",
    ),
    "fearful": (
        "Please don't hurt me, I'm scared.",
        "Somebody is following us, we have to run.",
        "I'm terrified that something bad is going to happen.",
    ),
    "disgusted": (
        "Ew, that is disgusting, there are worms in it.",
        "That smell makes me want to throw up.",
        "This food is gross, take it away from me.",
    ),
    "surprised": (
        "Oh my God, I can't believe you are here!",
        "What? You are getting married? Since when?",
        "Wow, I did not expect that at all!",
    ),
}
