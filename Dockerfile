# The API without AWS: locked dependencies, slim, not root. docs/DEPLOYMENT.md says how far it has been tried.
ARG PYTHON_VERSION=3.13

FROM python:${PYTHON_VERSION}-slim AS build
RUN pip install --no-cache-dir --disable-pip-version-check uv==0.13.9
ENV VIRTUAL_ENV=/opt/app UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /src
# The dependencies first: this layer stays while only the server changes.
COPY infra/requirements-container.lock infra/requirements-container.lock
RUN uv venv /opt/app
RUN uv pip install --require-hashes --requirement infra/requirements-container.lock
COPY packages/state-tracking-api packages/state-tracking-api
RUN uv pip install --no-deps ./packages/state-tracking-api
RUN /opt/app/bin/python -m compileall -q /opt/app/lib

FROM python:${PYTHON_VERSION}-slim
COPY --from=build /opt/app /opt/app
ENV PATH=/opt/app/bin:/usr/local/bin:/usr/bin:/bin HOST=0.0.0.0 PORT=3000 ENVIRONMENT=production
USER 10001:10001
EXPOSE 3000
HEALTHCHECK --interval=30s --timeout=3s --start-period=10s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health', timeout=2)"]
CMD ["state-tracking-api", "serve"]
