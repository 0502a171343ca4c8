"""Run by the Python that has llama.cpp (xllamacpp): what comes next after prompts, as JSON on standard output.

python run_llama_cpp.py MODEL.gguf < prompts.json
"""

import json
import sys

import xllamacpp


def main() -> None:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.n_ctx, parameters.warmup = 512, False
    server, found = xllamacpp.Server(parameters), []
    for prompt in json.load(sys.stdin):
        asked = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": 5}
        said = server.handle_completions(asked)
        told = said["choices"][0]["logprobs"]
        # nothing is told where the likeliest token is an end
        likeliest = told["content"][0]["top_logprobs"] if told else []
        found.append(
            {
                "prompt_tokens": said["usage"]["prompt_tokens"],
                "top": {one["id"]: one["logprob"] for one in likeliest},
            }
        )
    print("FOUND " + json.dumps(found))


if __name__ == "__main__":
    main()
