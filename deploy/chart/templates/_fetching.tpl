{{/*
Init containers: what values ask for, then what is fetched from the hub. Of a drafter's methods only heads read the
target's weights.
*/}}
{{- define "paceline.initContainers" -}}
{{- with .values.extraInitContainers }}
{{ toYaml . }}
{{- end }}
{{- if .root.Values.model.fetch }}
{{- if or (ne .component "drafter") (include "paceline.drafts" (dict "with" "eagle" "values" .values)) }}
{{ include "paceline.fetch" (merge (dict "name" "fetch-model" "source" .root.Values.model.source) .) }}
{{- end }}
{{- if and (eq .component "drafter") (include "paceline.drafts" (dict "with" "draft" "values" .values)) }}
{{- if not (hasPrefix "/" .values.settings.draftModel) }}
{{ include "paceline.fetch" (merge (dict "name" "fetch-draft-model" "source" .values.settings.draftModel) .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "paceline.fetch" -}}
- name: {{ .name }}
  image: {{ include "paceline.image" (dict "image" .values.image "registry" .root.Values.image.registry "version" .root.Chart.AppVersion) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [paceline, model, fetch, {{ .source | quote }}]
  env:
    - {name: PACELINE_CACHE, value: {{ .root.Values.model.cache.mountPath }}}
    - {name: HF_HOME, value: {{ .root.Values.model.cache.mountPath }}/huggingface}
    {{- with .root.Values.model.hubToken.existingSecret }}
    - name: HF_TOKEN
      valueFrom:
        secretKeyRef: {name: {{ . }}, key: {{ $.root.Values.model.hubToken.key }}}
    {{- end }}
    {{- with .values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  resources:
    requests: {cpu: 100m, memory: 512Mi}
  securityContext:
    {{- mustMergeOverwrite (deepCopy .root.Values.security.container) .values.containerSecurityContext | toYaml | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    {{- include "paceline.modelMount" . | nindent 4 }}
{{- end -}}
