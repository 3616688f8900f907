"""How good: right answers, figures of rationales, and how near q is to the posterior."""
