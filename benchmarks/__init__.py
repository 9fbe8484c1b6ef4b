"""The judge: runs a paper's protocol, derives verdicts and reports them. Methods never import it."""
