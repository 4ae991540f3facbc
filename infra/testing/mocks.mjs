/** Pulumi's mocks: what stands in the place of the engine and of AWS while the stack is evaluated. Nothing is created. */

const ACCOUNT = "123456789012";
const REGION = process.env.AWS_REGION || "us-east-1";

/** What AWS would answer: identifiers in AWS's own forms, so that what is built from them can be checked. */
export function mocks(resources) {
  const computed = {
    "aws:lambda/function:Function": ({ inputs }) => ({
      arn: `arn:aws:lambda:${REGION}:${ACCOUNT}:function:${inputs.name}`,
      qualifiedArn: `arn:aws:lambda:${REGION}:${ACCOUNT}:function:${inputs.name}:1`,
    }),
    "aws:cloudwatch/logGroup:LogGroup": ({ inputs }) => ({
      arn: `arn:aws:logs:${REGION}:${ACCOUNT}:log-group:${inputs.name}`,
    }),
    "aws:apigatewayv2/api:Api": () => ({
      apiEndpoint: `https://a1b2c3d4e5.execute-api.${REGION}.amazonaws.com`,
      executionArn: `arn:aws:execute-api:${REGION}:${ACCOUNT}:a1b2c3d4e5`,
    }),
    "aws:apigatewayv2/domainName:DomainName": ({ inputs }) => ({
      domainNameConfiguration: {
        ...inputs.domainNameConfiguration,
        targetDomainName: `d-abcdef.execute-api.${REGION}.amazonaws.com`,
        hostedZoneId: "Z1UJRXOUMOOFQ8",
      },
    }),
    "aws:acm/certificate:Certificate": ({ name, inputs }) => ({
      arn: `arn:aws:acm:${name.startsWith("Edge") ? "us-east-1" : REGION}:${ACCOUNT}:certificate/11111111-2222-4333-8444-555555555555`,
      domainValidationOptions: [
        {
          resourceRecordName: `_check.${inputs.domainName}.`,
          resourceRecordType: "CNAME",
          resourceRecordValue: "_value.acm-validations.aws.",
        },
      ],
    }),
    "aws:iam/role:Role": ({ name }) => ({ arn: `arn:aws:iam::${ACCOUNT}:role/${name}` }),
    "aws:sns/topic:Topic": ({ name }) => ({ arn: `arn:aws:sns:${REGION}:${ACCOUNT}:${name}` }),
    "aws:cloudfront/distribution:Distribution": () => ({
      domainName: "d111111abcdef8.cloudfront.net",
      hostedZoneId: "Z2FDTNDATAQYW2",
      etag: "E1",
    }),
    "random:index/randomBytes:RandomBytes": () => ({ base64: Buffer.alloc(32, 7).toString("base64") }),
  };
  const calls = {
    "aws:index/getRegion:getRegion": () => ({ region: REGION, id: REGION, name: REGION }),
    "aws:index/getCallerIdentity:getCallerIdentity": () => ({ accountId: ACCOUNT, arn: "", userId: "" }),
    "aws:index/getPartition:getPartition": () => ({ partition: "aws", dnsSuffix: "amazonaws.com" }),
    "aws:iam/getPolicyDocument:getPolicyDocument": ({ inputs }) => ({
      statements: inputs.statements,
      json: JSON.stringify({
        Version: "2012-10-17",
        Statement: (inputs.statements ?? []).map((s) => ({ Effect: "Allow", Action: s.actions, Resource: s.resources })),
      }),
    }),
  };
  return {
    newResource(args) {
      const inputs = revealed(args.inputs);
      resources.push({ type: args.type, name: args.name, provider: args.provider || undefined, inputs });
      const id = args.type === "aws:apigatewayv2/api:Api" ? "a1b2c3d4e5" : `${args.name}-id`;
      const base = args.type === "pulumi-nodejs:dynamic:Resource" ? { zoneId: "Z0000000TRUAPI", isDone: true } : {};
      return { id, state: { ...base, ...args.inputs, ...computed[args.type]?.(args) } };
    },
    call: (args) => calls[args.token]?.(args) ?? {},
  };
}

/** Inputs as the provider would get them: Pulumi wraps what is secret in {signature, value}. */
function revealed(value) {
  if (Array.isArray(value)) return value.map(revealed);
  if (value === null || typeof value !== "object") return value;
  if (value["4dabf18193072939515e22adb298388d"]) return revealed(value.value);
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, revealed(item)]));
}
