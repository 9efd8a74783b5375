# vLLM's image with the GIRCSE plugin: docker build -f deploy/vllm.Dockerfile -t registry.example.com/gircse-vllm:0.32.0 .
FROM vllm/vllm-openai:v0.32.0
COPY . /src
# Keep the image's versions of torch and transformers, and add the dependencies that vLLM does not bring.
RUN pip install --no-cache-dir --no-deps /src \
    && pip install --no-cache-dir "peft>=0.21,<0.22" "qdrant-client>=1.20,<1.21" "gguf>=0.17" "platformdirs>=4" \
       "semantic-text-splitter>=0.33,<0.34" "tenacity>=9.1,<10" \
    && rm -rf /src
ENV VLLM_PLUGINS=gircse
